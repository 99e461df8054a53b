"""A generated checkpoint's tokenizer: Llama 3's form, with its published vocabulary or with a few hundred tokens."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from bimedix_edge.converters.source.tokenizer import SPLIT_PATTERN, byte_alphabet

__all__ = ["MERGES", "SPECIALS", "published_vocabulary", "real_tokenizer_json", "tokenizer_config", "tokenizer_json"]

SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>")
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ù", "Ħ"), ("i", "n"), ("in", "g"), ("Ġ", "a"), ("1", "2"))
_ARRAY, _INT32 = 9, 5
# tokens of the published vocabulary before the special ones
_N_WORDS = 128000


def published_vocabulary(path: Path) -> dict[str, list[Any]]:
    """Return the arrays `tokens`, `token_type` and `merges` of a GGUF; gguf-py takes 15 seconds for them.

    Args:
        path: llama.cpp's own `ggml-vocab-llama-bpe.gguf`, which is trusted.
    """
    data, found = path.read_bytes(), {}
    for name in ("tokens", "token_type", "merges"):
        key = f"tokenizer.ggml.{name}".encode()
        position = data.index(len(key).to_bytes(8, "little") + key) + 8 + len(key)
        array, kind, count = struct.unpack_from("<IIQ", data, position)
        assert array == _ARRAY
        found[name] = _items(data, position + 16, kind, count)
    return found


def _items(data: bytes, position: int, kind: int, count: int) -> list[Any]:
    if kind == _INT32:
        return list(struct.unpack_from(f"<{count}i", data, position))
    texts = []
    for _ in range(count):
        length = int.from_bytes(data[position : position + 8], "little")
        texts.append(data[position + 8 : position + 8 + length].decode())
        position += 8 + length
    return texts


def real_tokenizer_json(path: Path) -> dict[str, Any]:
    """Return tokenizer.json with the published vocabulary, and `<pad>` as BiMediX2 adds it.

    Args:
        path: See `published_vocabulary`.
    """
    published = published_vocabulary(path)
    tokens = published["tokens"]
    value = tokenizer_json(pairs=True)
    value["model"]["vocab"] = {text: index for index, text in enumerate(tokens[:_N_WORDS])}
    value["model"]["merges"] = [merge.split(" ") for merge in published["merges"]]
    value["added_tokens"] = [
        _special(_N_WORDS + index, text) for index, text in enumerate([*tokens[_N_WORDS:], "<pad>"])
    ]
    value["post_processor"]["special_tokens"][SPECIALS[0]]["ids"] = [_N_WORDS]
    return value


def _special(index: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, "special": True, **flags}


def tokenizer_json(*, pairs: bool = False) -> dict[str, Any]:
    """Return a byte-level BPE in Llama 3's form: 256 bytes, a few merges, the special tokens."""
    words = [*byte_alphabet(), *("".join(pair) for pair in MERGES)]
    vocab = {text: index for index, text in enumerate(words)}
    added = [_special(len(words) + index, text) for index, text in enumerate(SPECIALS)]
    template = [{"SpecialToken": {"id": SPECIALS[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SPECIALS[0]: {"id": SPECIALS[0], "ids": [len(words)], "tokens": [SPECIALS[0]]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [list(pair) if pairs else " ".join(pair) for pair in MERGES],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json."""
    return {
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>", "special": True},
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
    }
