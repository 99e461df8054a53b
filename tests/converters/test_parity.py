"""The parity check: errors near zero for a right conversion, and large ones for each mistake it must find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from test_vision_onnx import encoder, pixels

from bimedix_edge.converters.check.parity import TensorError, decoder_errors, token_cosines
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder import gguf as decoder_gguf
from bimedix_edge.converters.decoder import quantize
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.vision import graph as vision_onnx
from bimedix_edge.decoder.gguf_header import read_header
from bimedix_edge.errors import CheckpointError

# measured relative RMS of random weights, plus a quarter
BOUNDS = {"F32": 0, "BF16": 0, "F16": 1e-7, "Q8_0": 0.008, "Q6_K": 0.025, "Q5_K_M": 0.05, "Q4_K_M": 0.1, "Q4_0": 0.12}


def errors(source: Path, tmp_path: Path, file_type: str = "F32") -> dict[str, TensorError]:
    convert(source, tmp_path / "out", ConvertOptions(file_type=file_type))
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
    monkeypatch.setattr("bimedix_edge.converters.check.parity.BLOCK_VALUES", 20_000)
    assert all(error.relative_rms < 1e-6 for error in errors(checkpoint, tmp_path).values())


def test_q_and_k_not_permuted(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_gguf, "permuted_rows", lambda n_rows, _: np.arange(n_rows))
    wrong = {name for name, error in errors(checkpoint, tmp_path).items() if error.cosine < 0.99}
    assert wrong == {f"blk.{layer}.attn_{part}.weight" for layer in range(3) for part in "qk"}


def test_q_and_k_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = {"self_attn.q_proj": "self_attn.k_proj", "self_attn.k_proj": "self_attn.q_proj"}
    swapped = tuple((name, swap.get(source, source)) for name, source in decoder_gguf.BLOCK_TENSORS)
    monkeypatch.setattr(decoder_gguf, "BLOCK_TENSORS", swapped)
    source = make_checkpoint(tmp_path / "source", shape=Shape(n_head_kv=4, n_layer=1))
    wrong = {name for name, error in errors(source, tmp_path).items() if error.cosine < 0.99}
    assert wrong == {"blk.0.attn_q.weight", "blk.0.attn_k.weight"}


def test_frequencies_left_out(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare = decoder_gguf.declare_decoder
    monkeypatch.setattr(
        "bimedix_edge.converters.job.job.declare_decoder", lambda *given, **more: declare(*given, **more)[:-1]
    )
    with pytest.raises(CheckpointError, match=r"should have 31 tensors.* rope_freqs\.weight"):
        errors(checkpoint, tmp_path)


def test_frequencies_not_scaled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_gguf, "rope_factors", lambda config: np.ones(config.head_dim // 2, np.float32))
    assert errors(checkpoint, tmp_path)["rope_freqs.weight"].relative_rms > 0.5


def test_another_type_than_the_recipes(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mutated(name: str, *rest: Any) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType.Q4_0 if name == "blk.2.attn_v.weight" else tensor_type(name, *rest)

    tensor_type = quantize.tensor_type
    source = Checkpoint(checkpoint)
    tensors = decoder_gguf.declare_decoder(source, quantize.file_type_named("Q4_K_M"))
    monkeypatch.setattr(decoder_gguf, "tensor_type", mutated)
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q4_K_M"))
    types = {tensor.name: tensor.kind for tensor in tensors}
    with pytest.raises(
        CheckpointError, match=r"recipe's types: blk\.2\.attn_v\.weight is Q4_0 instead of Q6_K\. Convert"
    ):
        list(decoder_errors(tmp_path / "out/decoder.gguf", source, types=types))


@pytest.mark.parametrize(("kind", "size"), [("Q8_0", 34), ("Q4_0", 18), ("Q4_K_M", 144)])
def test_one_block_with_another_scale(kind: str, size: int, checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type=kind))
    path, name = tmp_path / "out/decoder.gguf", "blk.1.ffn_up.weight"
    start = read_header(path.read_bytes()).tensors[name].start + 11 * size
    data = bytearray(path.read_bytes())
    data[start : start + 2] = (2 * np.frombuffer(bytes(data[start : start + 2]), np.float16)).tobytes()
    path.write_bytes(bytes(data))
    found = {error.name: error for error in decoder_errors(path, Checkpoint(checkpoint))}
    # a doubled scale: small in the whole tensor, large in its row
    assert found[name].relative_rms < 3 * BOUNDS[kind]
    assert [error.name for error in found.values() if error.worst_row > 2 * BOUNDS[kind]] == [name]


@pytest.mark.parametrize("max_values", [256, 5_000, 20_000, 1 << 20])
def test_some_rows_tell_nearly_what_all_do(max_values: int, checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q4_K_M"))
    path, source = tmp_path / "out/decoder.gguf", Checkpoint(checkpoint)
    for whole, some in zip(
        decoder_errors(path, source), decoder_errors(path, source, max_values=max_values), strict=True
    ):
        assert (whole.name, whole.type, whole.n_values) == (some.name, some.type, some.n_values)
        assert some.relative_rms == pytest.approx(whole.relative_rms, rel=0.2, abs=1e-6)
        assert some.worst_row <= whole.worst_row + 1e-9


def test_a_file_that_ends_early(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q8_0"))
    path = tmp_path / "out/decoder.gguf"
    for size in (3, 100, 20_000, path.stat().st_size - 40):
        (tmp_path / "short.gguf").write_bytes(path.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=r"short\.gguf is not a whole GGUF"):
            list(decoder_errors(tmp_path / "short.gguf", Checkpoint(checkpoint)))


def test_projector_transposed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = vision_onnx.TowerGraph.read_weight

    def turned(self: Any, name: str) -> Any:
        return read(self, name).T if name == "projector.2.weight" else read(self, name)

    monkeypatch.setattr(vision_onnx.TowerGraph, "read_weight", turned)
    convert(checkpoint, tmp_path / "out")
    cosines = token_cosines(Checkpoint(checkpoint), encoder(tmp_path / "out/vision.onnx"), pixels(Shape()))
    assert cosines.max() < 0.9


def test_one_block_too_few(tmp_path: Path) -> None:
    source, short = (make_checkpoint(tmp_path / f"{layer}", shape=Shape(select_layer=layer)) for layer in (-2, -3))
    convert(short, tmp_path / "out")
    cosines = token_cosines(Checkpoint(source), encoder(tmp_path / "out/vision.onnx"), pixels(Shape()))
    assert cosines.max() < 0.999
