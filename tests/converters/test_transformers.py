"""Converted files against transformers, live: the same weights, the tower by token, the decoder by logit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_model import LlamaModel
from make_checkpoint import Shape, make_checkpoint, transformers_config
from test_vision_onnx import encoder, pixels

from bimedix_edge.converters import reference
from bimedix_edge.converters.checkpoint import Checkpoint
from bimedix_edge.converters.convert import convert
from bimedix_edge.converters.decoder_gguf import rope_factors

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
SHAPE = Shape(n_vocab=288)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return transformers' Llava with the tiny checkpoint's weights, float32, attention written out."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = make_checkpoint(tmp_path_factory.mktemp("hf") / "source", layout="transformers_old", dtype="f32")
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hf") / "out"
    convert(checkpoint, target, file_type="F32")
    return target


def test_image_tokens(model: Any, out: Path, checkpoint: Path) -> None:
    import torch

    encode = encoder(out / "vision.onnx")
    for seed in range(3):
        values = pixels(SHAPE, seed)
        with torch.no_grad():
            outputs = model.model.vision_tower(torch.from_numpy(values), output_hidden_states=True)
            expected = model.model.multi_modal_projector(outputs.hidden_states[-2][:, 1:]).numpy()
        given = encode(values)
        norms = np.linalg.norm(given, axis=-1) * np.linalg.norm(expected, axis=-1)
        assert ((given * expected).sum(-1) / norms).min() >= 0.99999
        assert np.abs(given - expected).max() < 1e-4
        assert np.abs(reference.image_embeds(Checkpoint(checkpoint), values) - expected).max() < 1e-4


def test_logits(model: Any, out: Path, checkpoint: Path) -> None:
    import torch

    tokens = np.random.default_rng(2).integers(0, 264, 200)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].numpy()
    with LlamaModel(out / "decoder.gguf") as llama:
        given = llama.logits(tokens.tolist())
    assert np.abs(given - expected).max() < 1e-4
    assert (given.argmax(-1) == expected.argmax(-1)).all()
    source = Checkpoint(checkpoint)
    judged = reference.decoder_logits(source, source.rows("model.embed_tokens.weight", tokens))
    assert np.abs(judged - expected).max() < 1e-4


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_rope_factors_bit_for_bit(head_dim: int, checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    config = replace(Checkpoint(checkpoint).config.decoder, head_dim=head_dim)
    # llama.cpp's conversion/llama.py, generate_extra_tensors
    frequencies = 1.0 / (config.rope_theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1)
        elif wavelength > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    assert np.array_equal(rope_factors(config), torch.tensor(factors, dtype=torch.float32).numpy())


def test_what_transformers_saves_is_read_back(model: Any, out: Path, tmp_path: Path, checkpoint: Path) -> None:
    model.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "saved" / name).write_bytes((checkpoint / name).read_bytes())
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert saved["model_type"] == transformers_config(SHAPE)["model_type"]
    convert(tmp_path / "saved", tmp_path / "again", file_type="F32", name="tiny")
    for name in ("decoder.gguf", "vision.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
