"""Converted files against transformers, live: the same weights, the tower by token, the decoder by logit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_model import LlamaModel
from make_checkpoint import Form, Shape, make_checkpoint, transformers_config
from test_vision_onnx import encoder, pixels

from bimedix_edge.converters import convert as convert_module
from bimedix_edge.converters.check import reference
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder import gguf as decoder_gguf
from bimedix_edge.converters.decoder.gguf import rope_factors
from bimedix_edge.converters.job import job
from bimedix_edge.converters.source.checkpoint import Checkpoint

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
SHAPE = Shape(n_vocab=288)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return transformers' Llava with the tiny checkpoint's weights, float32, attention written out."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = make_checkpoint(
        tmp_path_factory.mktemp("hf") / "source", form=Form(layout="transformers_old", dtype="f32")
    )
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hf") / "out"
    convert(checkpoint, target, ConvertOptions(file_type="F32"))
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
    convert(tmp_path / "saved", tmp_path / "again", ConvertOptions(file_type="F32", name="tiny"))
    for name in ("decoder.gguf", "vision.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


PREFIX = 16
JUMPS = (1_000, 8_192, 30_000, 99_990)


def test_rotations_up_to_position_100_000(model: Any, out: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Frequencies, their scaling and the order of Q's and K's rows, at far positions, where mistakes become large.

    llama.cpp takes consecutive positions only, but it can move what it has cached. So the last token is moved to a far
    position, its key rotated on by each library in its own way, and three more tokens follow it there; and so on.
    """
    import torch

    tokens = np.random.default_rng(3).integers(0, 264, PREFIX + 3 * len(JUMPS))
    expected, positions = _transformers_with_jumps(model, tokens)
    assert positions.max() > 99_990
    with LlamaModel(out / "decoder.gguf") as llama:
        given = _llama_with_jumps(llama, tokens)
    # float32 represents an angle of 100,000 to 0.004
    assert np.abs(given - expected).max() < 0.02
    assert (given.argmax(-1) == expected.argmax(-1)).all()
    declare = decoder_gguf.declare_decoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "declare_decoder", lambda *rest, **more: declare(*rest, **more)[:-1])
        patch.setattr(convert_module, "measure_decoder", lambda *_: [])
        convert(checkpoint, tmp_path / "unscaled", ConvertOptions(file_type="F32"))
    with LlamaModel(tmp_path / "unscaled/decoder.gguf") as llama:
        assert np.abs(_llama_with_jumps(llama, tokens) - expected).max() > 0.2
    # without jumps, in a single call: the numpy model, with and without the scaling
    gaps = np.unique(np.geomspace(1, 100_000, 60).astype(int))
    source = Checkpoint(checkpoint)
    embeds = source.rows("model.embed_tokens.weight", np.resize(tokens, len(gaps)))
    with torch.no_grad():
        far = model(
            inputs_embeds=torch.from_numpy(embeds)[None],
            attention_mask=torch.ones(1, len(gaps), dtype=torch.long),  # else gaps would part the sequence
            position_ids=torch.from_numpy(gaps)[None],
        ).logits[0]
    assert np.abs(reference.decoder_logits(source, embeds, gaps) - far.numpy()).max() < 0.02
    source.config = replace(source.config, decoder=replace(source.config.decoder, rope_scaling=None))
    assert np.abs(reference.decoder_logits(source, embeds, gaps) - far.numpy()).max() > 0.2


def _segments(tokens: Any) -> list[tuple[int, Any]]:
    """Return the first position and the tokens of each run."""
    runs = [(0, tokens[:PREFIX])]
    for index, jump in enumerate(JUMPS):
        start = PREFIX + 3 * index
        runs.append((jump + 1, tokens[start : start + 3]))
    return runs


def _transformers_with_jumps(model: Any, tokens: Any) -> tuple[Any, Any]:
    import torch
    from transformers import DynamicCache
    from transformers.models.llama.modeling_llama import rotate_half

    cache, logits, positions, last = DynamicCache(), [], [], -1
    decoder = model.model.language_model
    for start, run in _segments(tokens):
        if last >= 0:
            for layer in cache.layers:
                moved = layer.keys[:, :, -1:]
                cos, sin = decoder.rotary_emb(moved, torch.tensor([[start - 1 - last]]))
                layer.keys[:, :, -1:] = moved * cos[:, None] + rotate_half(moved) * sin[:, None]
        places = np.arange(start, start + len(run))
        with torch.no_grad():
            output = model(
                input_ids=torch.from_numpy(run)[None],
                position_ids=torch.from_numpy(places)[None],
                past_key_values=cache,
                use_cache=True,
            )
        logits.append(output.logits[0].numpy())
        positions.append(places)
        last = int(places[-1])
    return np.concatenate(logits), np.concatenate(positions)


def _llama_with_jumps(llama: LlamaModel, tokens: Any) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(llama.model, params)
    memory, logits, last = llama_cpp.llama_get_memory(context), [], -1
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama.vocab)
    for start, run in _segments(tokens):
        if last >= 0:
            llama_cpp.llama_memory_seq_add(memory, 0, last, last + 1, start - 1 - last)
        batch = llama_cpp.llama_batch_init(len(run), 0, 1)
        batch.n_tokens = len(run)
        for index, token in enumerate(run):
            batch.token[index], batch.pos[index], batch.logits[index] = int(token), start + index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        assert llama_cpp.llama_decode(context, batch) == 0
        logits.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(run), n_vocab)).copy())
        llama_cpp.llama_batch_free(batch)
        last = start + len(run) - 1
    llama_cpp.llama_free(context)
    return np.concatenate(logits)
