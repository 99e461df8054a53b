"""Every fact of a Llama 3.1 decoder's GGUF, and its logits against the numpy reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_model import LlamaModel
from make_checkpoint import SPECIALS, Shape, make_checkpoint

from bimedix_edge.converters.check import reference
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder.gguf import permuted_rows, rope_factors
from bimedix_edge.converters.source.card import Card
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.config import DecoderConfig, Llama3Scaling
from bimedix_edge.prompt import PromptMessage, PromptSpec, Special, Text, render

LLAMA_31 = DecoderConfig(
    n_vocab=128257, n_embd=4096, n_ff=14336, n_layer=32, n_head=32, n_head_kv=8, head_dim=128, n_ctx_train=131072,
    rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192), tied=False,
)  # fmt: skip
TOKENS = [264, 264, 267, 10, 20, 30, 256, 257, 40, 100, 268, 265]


@pytest.fixture(scope="module")
def reader(bundle: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(bundle / "decoder.gguf")


def _key(reader: gguf.GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def test_keys(reader: gguf.GGUFReader) -> None:
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.size_label": "1.9M",
        "general.license": "cc-by-nc-sa-4.0",
        "general.languages": ["en", "ar"],
        "general.file_type": 0,
        "general.quantization_version": 2,
        "llama.block_count": 3,
        "llama.context_length": 131072,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 64,
        "llama.vocab_size": 288,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 264,
        "tokenizer.ggml.eos_token_id": 268,
        "tokenizer.ggml.padding_token_id": 269,
        "tokenizer.ggml.add_bos_token": True,
    }
    assert {name: _key(reader, name) for name in expected} == expected
    rest = {name for name in reader.fields if not name.startswith("GGUF.")} - expected.keys()
    arrays = {f"tokenizer.ggml.{part}" for part in ("tokens", "token_type", "merges")}
    assert rest == {*arrays, "tokenizer.chat_template"}


def test_source_is_named_when_the_card_names_it(checkpoint: Path, tmp_path: Path) -> None:
    card = Card(repository="MBZUAI/BiMediX2-8B", licence="Apache-2.0", languages=("ar",))
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16", card=card))
    reader = gguf.GGUFReader(tmp_path / "out/decoder.gguf")
    assert _key(reader, "general.source.url") == "https://huggingface.co/MBZUAI/BiMediX2-8B"
    assert _key(reader, "general.license") == "apache-2.0"
    assert _key(reader, "general.languages") == ["ar"]


def test_tensors(reader: gguf.GGUFReader) -> None:
    parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    expected = {f"blk.{layer}.{part}.weight" for layer in range(3) for part in parts}
    expected |= {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"}
    assert {tensor.name for tensor in reader.tensors} == expected


def test_full_size_has_292_tensors() -> None:
    from bimedix_edge.converters.decoder.gguf import tensor_names

    assert len(list(tensor_names(LLAMA_31))) + 1 == 292


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M", "Q8_0"])
def test_norms_and_frequencies_stay_f32(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type=kind))
    for tensor in gguf.GGUFReader(tmp_path / "out/decoder.gguf").tensors:
        assert (tensor.tensor_type.name == "F32") == (len(tensor.shape) == 1), tensor.name


def test_rope_factors_of_llama_31() -> None:
    factors = rope_factors(LLAMA_31)
    assert factors.dtype == np.float32
    assert factors.shape == (64,)
    assert (factors[:29] == 1).all()
    assert (factors[35:] == 8).all()
    assert factors[29:35] == pytest.approx([1.2075, 1.5534, 2.0263, 2.6945, 3.6843, 5.2573], abs=1e-4)


def test_rope_factors_divide_the_frequencies(checkpoint: Path) -> None:
    config = Checkpoint(checkpoint).config.decoder
    plain = config.rope_theta ** -(np.arange(0, 64, 2) / 64)
    assert plain / rope_factors(config) == pytest.approx(reference.inverse_frequencies(config), rel=1e-6)


def test_permutation_pairs_the_halves_of_each_head() -> None:
    assert permuted_rows(12, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_q_by_heads_and_k_by_key_heads(reader: gguf.GGUFReader, checkpoint: Path) -> None:
    source = Checkpoint(checkpoint)
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    for part, n_head in (("q", 4), ("k", 2)):
        rows = source.rows(f"model.layers.1.self_attn.{part}_proj.weight", slice(None))
        # llama.cpp's own expression, LlamaModel.permute
        expected = rows.reshape(n_head, 2, len(rows) // n_head // 2, -1).swapaxes(1, 2).reshape(rows.shape)
        assert np.array_equal(written[f"blk.1.attn_{part}.weight"], expected)
    rows = source.rows("model.layers.1.self_attn.v_proj.weight", slice(None))
    assert np.array_equal(written["blk.1.attn_v.weight"], rows)


def test_tokens_fill_the_embedding(reader: gguf.GGUFReader) -> None:
    tokens, kinds = _key(reader, "tokenizer.ggml.tokens"), _key(reader, "tokenizer.ggml.token_type")
    assert len(tokens) == len(kinds) == 288
    assert tokens[264:272] == [*SPECIALS, "[PAD270]", "[PAD271]"]
    assert kinds[:264] == [1] * 264
    assert kinds[264:270] == [3] * 6
    assert kinds[270:] == [5] * 18


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(scaling=False),
        Shape(tied=True),
        Shape(head_dim=32),
        Shape(n_head=8, n_head_kv=1, n_layer=2),
        Shape(n_head_kv=4, n_layer=1),
    ],
    ids=["llama31", "unscaled", "tied", "head_dim", "one_key_head", "a_key_for_each_head"],
)
def test_logits_equal_the_reference(shape: Shape, tmp_path: Path) -> None:
    source = Checkpoint(make_checkpoint(tmp_path / "source", shape=shape))
    convert(tmp_path / "source", tmp_path / "out", ConvertOptions(file_type="F32"))
    embeds = source.rows("model.embed_tokens.weight", np.array(TOKENS))
    expected = reference.decoder_logits(source, embeds)
    with LlamaModel(tmp_path / "out/decoder.gguf") as model:
        given = model.logits(TOKENS)
        from_embeds = model.logits(embeds=embeds)
    assert np.abs(given - expected).max() < 2e-5
    assert np.abs(from_embeds - expected).max() < 2e-5
    assert (given.argmax(-1) == expected.argmax(-1)).all()


def test_logits_after_a_long_text(tmp_path: Path) -> None:
    # 2500 positions: far enough that unscaled frequencies, or scaled ones in the wrong order, give other logits
    source = Checkpoint(make_checkpoint(tmp_path / "source", shape=Shape(n_layer=1)))
    convert(tmp_path / "source", tmp_path / "out", ConvertOptions(file_type="F32"))
    tokens = np.random.default_rng(5).integers(0, 264, 2500).tolist()
    expected = reference.decoder_logits(source, source.rows("model.embed_tokens.weight", np.array(tokens)))
    with LlamaModel(tmp_path / "out/decoder.gguf", n_ctx=2560) as model:
        given = model.logits(tokens)
    assert np.abs(given - expected).max() < 1e-3
    unscaled = replace(source.config, decoder=replace(source.config.decoder, rope_scaling=None))
    source.config = unscaled
    other = reference.decoder_logits(source, source.rows("model.embed_tokens.weight", np.array(tokens)))
    assert np.abs(given - other).max() > 1e-2


def test_chat_template_is_the_prompt(reader: gguf.GGUFReader) -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        _key(reader, "tokenizer.chat_template")
    )
    messages = [
        PromptMessage("user", "Is there a nodule?"),
        PromptMessage("assistant", "Yes."),
        PromptMessage("user", "أين؟"),
    ]
    expected = "".join(
        segment.name if isinstance(segment, Special) else segment.text
        for segment in render(messages, PromptSpec(bos=1))
        if isinstance(segment, (Special, Text))
    )
    turns = [{"role": message.role, "content": message.text} for message in messages]
    assert template.render(messages=turns, bos_token="<|begin_of_text|>", add_generation_prompt=True) == expected
    other = [{"role": "system", "content": "Be brief."}, turns[0]]
    assert "Be brief.<|eot_id|>" in template.render(messages=other, bos_token="")
