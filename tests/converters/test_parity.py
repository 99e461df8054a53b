"""The parity check: near zero for what was converted rightly, and far from it for every mistake it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from test_vision_onnx import encoder, pixels

from bimedix_edge.converters import decoder_gguf, vision_onnx
from bimedix_edge.converters.checkpoint import Checkpoint
from bimedix_edge.converters.convert import convert
from bimedix_edge.converters.parity import TensorError, decoder_errors, token_cosines
from bimedix_edge.errors import CheckpointError

# relative RMS of random weights; measured, with a quarter to spare
BOUNDS = {"F32": 0, "BF16": 0, "F16": 1e-7, "Q8_0": 0.008, "Q6_K": 0.025, "Q5_K_M": 0.05, "Q4_K_M": 0.1, "Q4_0": 0.12}


def errors(source: Path, tmp_path: Path, file_type: str = "F32") -> dict[str, TensorError]:
    convert(source, tmp_path / "out", file_type=file_type)
    return {error.name: error for error in decoder_errors(tmp_path / "out/decoder.gguf", Checkpoint(source))}


@pytest.mark.parametrize("file_type", BOUNDS)
def test_errors_by_type(file_type: str, checkpoint: Path, tmp_path: Path) -> None:
    found = errors(checkpoint, tmp_path, file_type)
    assert len(found) == 31
    for error in found.values():
        bound = 1e-6 if error.name == "rope_freqs.weight" else BOUNDS[file_type]
        assert error.relative_rms <= bound, error
        assert error.cosine > 1 - max(bound, 1e-6)


def test_blocks_of_heads(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimedix_edge.converters.parity._BLOCK_VALUES", 20_000)
    assert all(error.relative_rms < 1e-6 for error in errors(checkpoint, tmp_path).values())


def test_q_and_k_not_permuted(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_gguf, "permuted_rows", lambda n_rows, _: np.arange(n_rows))
    wrong = {name for name, error in errors(checkpoint, tmp_path).items() if error.cosine < 0.99}
    assert wrong == {f"blk.{layer}.attn_{part}.weight" for layer in range(3) for part in "qk"}


def test_q_and_k_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = {"self_attn.q_proj": "self_attn.k_proj", "self_attn.k_proj": "self_attn.q_proj"}
    swapped = tuple((name, swap.get(source, source)) for name, source in decoder_gguf._BLOCK)
    monkeypatch.setattr(decoder_gguf, "_BLOCK", swapped)
    source = make_checkpoint(tmp_path / "source", shape=Shape(n_head_kv=4, n_layer=1))
    wrong = {name for name, error in errors(source, tmp_path).items() if error.cosine < 0.99}
    assert wrong == {"blk.0.attn_q.weight", "blk.0.attn_k.weight"}


def test_frequencies_left_out(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = decoder_gguf.plan_decoder
    monkeypatch.setattr("bimedix_edge.converters.convert.plan_decoder", lambda *given: plan(*given)[:-1])
    with pytest.raises(CheckpointError, match=r"Expected 31 tensors .* rope_freqs\.weight"):
        errors(checkpoint, tmp_path)


def test_frequencies_not_scaled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_gguf, "rope_factors", lambda config: np.ones(config.head_dim // 2, np.float32))
    assert errors(checkpoint, tmp_path)["rope_freqs.weight"].relative_rms > 0.5


def test_projector_transposed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = vision_onnx._Tower._read

    def turned(self: Any, name: str) -> Any:
        return read(self, name).T if name == "projector.2.weight" else read(self, name)

    monkeypatch.setattr(vision_onnx._Tower, "_read", turned)
    convert(checkpoint, tmp_path / "out")
    cosines = token_cosines(Checkpoint(checkpoint), encoder(tmp_path / "out/vision.onnx"), pixels(Shape()))
    assert cosines.max() < 0.9


def test_one_block_too_few(tmp_path: Path) -> None:
    source, short = (make_checkpoint(tmp_path / f"{layer}", shape=Shape(select_layer=layer)) for layer in (-2, -3))
    convert(short, tmp_path / "out")
    cosines = token_cosines(Checkpoint(source), encoder(tmp_path / "out/vision.onnx"), pixels(Shape()))
    assert cosines.max() < 0.999
