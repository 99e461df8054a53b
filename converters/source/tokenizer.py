"""Turns tokenizer.json into the vocabulary of a GGUF, or refuses it where llama.cpp would tokenize differently.

llama.cpp has one fixed program for Llama 3's tokenizer (`tokenizer.ggml.pre = llama-bpe`): byte-level BPE, one split
pattern, no normalizer, whole words looked up before merging. A tokenizer.json with other options would load and
silently give other tokens, so this module checks each of these facts.

Source: llama.cpp `llama-vocab.cpp` and `conversion/base.py` (as vendored in llama-cpp-python 0.3.36); tokenizers 0.22.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimedix_edge.converters.source.strict_json import Fields, read_json
from bimedix_edge.errors import CheckpointError
from bimedix_edge.prompt import BOS, END_HEADER, END_OF_TURN, START_HEADER

__all__ = ["SPLIT_PATTERN", "SourceVocabulary", "TokenKind", "byte_alphabet", "read_vocabulary"]

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PAD = "<pad>"
# Llama 3's file is 9 MB, 17 MB with merges as pairs
_MAX_TOKENIZER_BYTES = 64 << 20


class TokenKind:
    """llama.cpp's token types, `llama_token_type`."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class SourceVocabulary:
    """A checkpoint's vocabulary, as a GGUF describes it.

    Attributes:
        tokens: One string for each row of the embedding.
        kinds: One `TokenKind` for each token.
        merges: `left right`, best first.
        bos_id, eos_id: Tokens that start a text and end a turn.
        pad_id: Padding token; None if the checkpoint has none.
        add_bos: Whether the published tokenizer puts a BOS before a text.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    bos_id: int
    eos_id: int
    pad_id: int | None
    add_bos: bool


def read_vocabulary(directory: Path, n_vocab: int) -> SourceVocabulary:
    """Read tokenizer.json and tokenizer_config.json.

    Args:
        directory: The checkpoint.
        n_vocab: Rows of the embedding; unused tokens fill the list up to it.

    Raises:
        CheckpointError: A file is missing or damaged, llama.cpp would tokenize differently, or the vocabulary has more
            tokens than the embedding has rows.
    """
    fields = read_json(directory / "tokenizer.json", _MAX_TOKENIZER_BYTES)
    settings = read_json(directory / "tokenizer_config.json", _MAX_TOKENIZER_BYTES)
    model = fields.child("model")
    _check_pipeline(fields, model)
    ids = _token_ids(model)
    added = _added_tokens(fields, ids)
    tokens, kinds = _fill(ids, added, n_vocab)
    _check_bytes(ids)
    merges = _merges(model, ids)
    if not model.flag("ignore_merges", False):
        _check_whole_words(ids, merges)
    by_text = {text: index for index, text in enumerate(tokens)}
    _check_prompt_tokens(added)
    return SourceVocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=merges,
        bos_id=_named(settings, "bos_token", by_text),
        eos_id=_named(settings, "eos_token", by_text),
        pad_id=_named(settings, "pad_token", by_text) if "pad_token" in settings else by_text.get(_PAD),
        add_bos=_adds_bos(fields),
    )


def byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte, 0 to 255, in byte-level BPE.

    Source: GPT-2 `encoder.py`, `bytes_to_unicode`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def _check_pipeline(fields: Fields, model: Fields) -> None:
    """Check that the tokenizer treats a text as llama.cpp's `llama-bpe` does."""
    faults = []
    if model.text("type", "BPE") != "BPE":
        faults.append(f"its model is {model.text('type')[:40]} instead of BPE")
    if any(model.raw(name) for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        faults.append("its BPE has options of other tokenizers")
    if fields.raw("normalizer") is not None:
        faults.append("it changes the text by a normalizer")
    if not _is_llama3_split(fields.raw("pre_tokenizer")):
        faults.append("it splits words by another pattern than Llama 3's")
    if faults:
        raise CheckpointError(
            f"tokenizer.json is not Llama 3's byte-level BPE: {'; '.join(faults)}. llama.cpp would tokenize "
            "differently, so this checkpoint cannot be converted. Use a BiMediX2 checkpoint."
        )


def _is_llama3_split(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type") != "Sequence":
        return False
    steps = value.get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != 2 or not all(isinstance(step, dict) for step in steps):
        return False
    split, byte_level = steps
    # `trim_offsets` is not compared: it moves offsets, not tokens
    return (
        split.get("type") == "Split"
        and split.get("pattern") == {"Regex": SPLIT_PATTERN}
        and split.get("behavior") == "Isolated"
        and not split.get("invert", False)
        and byte_level.get("type") == "ByteLevel"
        and byte_level.get("add_prefix_space") is False
        and byte_level.get("use_regex") is False
    )


def _token_ids(model: Fields) -> dict[str, int]:
    vocab = model.child("vocab")
    return {text: vocab.integer(text, low=0) for text in vocab.keys()}  # noqa: SIM118  not a dict


def _added_tokens(fields: Fields, ids: dict[str, int]) -> dict[int, tuple[str, int]]:
    """Return id to (text, kind) of the tokens that a tokenizer finds in a text before it splits it."""
    added: dict[int, tuple[str, int]] = {}
    for item in fields.items("added_tokens") if "added_tokens" in fields else []:
        token = Fields(item, f"{fields.where}: added_tokens")
        text, index = token.text("content"), token.integer("id", low=0)
        if ids.get(text, index) != index or index in added:
            raise CheckpointError(
                f"The added token {text[:40]!r} in tokenizer.json shares its id {index}, or has another id in the "
                "vocabulary. Download the checkpoint again."
            )
        # llama.cpp's converter also treats tokens of this form as control tokens
        control = token.flag("special", False) or text == _PAD or (text.startswith("<|") and text.endswith("|>"))
        added[index] = (text, TokenKind.CONTROL if control else TokenKind.USER_DEFINED)
    return added


def _fill(ids: dict[str, int], added: dict[int, tuple[str, int]], n_vocab: int) -> tuple[list[str], list[int]]:
    """Lay the tokens out by id, one for each row of the embedding."""
    n_tokens = 1 + max([*ids.values(), *added], default=-1)
    if n_tokens > n_vocab:
        raise CheckpointError(
            f"The vocabulary does not fit the embedding's {n_vocab} rows: tokenizer.json has {n_tokens} tokens. "
            "Check that tokenizer.json belongs to this checkpoint."
        )
    tokens = [f"[PAD{index}]" for index in range(n_vocab)]
    kinds = [TokenKind.UNUSED] * n_vocab
    for text, index in ids.items():
        tokens[index], kinds[index] = text, TokenKind.NORMAL
    clash = any(kinds[index] == TokenKind.NORMAL and tokens[index] != text for index, (text, _) in added.items())
    for index, (text, kind) in added.items():
        tokens[index], kinds[index] = text, kind
    # llama.cpp ends the process when two tokens are equal
    if clash or len(set(tokens)) != n_vocab or len(set(ids.values())) != len(ids) or not _encodable(tokens):
        raise CheckpointError(
            "Some tokens in tokenizer.json are equal, empty or invalid, or share an id. Download the checkpoint again."
        )
    return tokens, kinds


def _encodable(tokens: list[str]) -> bool:
    if "" in tokens:
        return False
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_bytes(ids: dict[str, int]) -> None:
    # llama.cpp's tokenizer ends the process at the first byte without a token
    if missing := [byte for byte, text in enumerate(byte_alphabet()) if text not in ids]:
        raise CheckpointError(
            f"{len(missing)} of the 256 bytes have no token in tokenizer.json, 0x{missing[0]:02x} among them. "
            "Download the checkpoint again."
        )


def _merges(model: Fields, ids: dict[str, int]) -> list[str]:
    """Return the merges as `left right`; files contain strings or pairs."""
    merges = []
    for item in model.items("merges"):
        pair = item.split(" ") if isinstance(item, str) else item
        known = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        if not known or not {*pair, "".join(pair)} <= ids.keys():
            raise CheckpointError(
                f"The merge {str(item)[:60]!r} in tokenizer.json does not join two tokens into a third. "
                "Download the checkpoint again."
            )
        merges.append(" ".join(pair))
    return merges


def _check_whole_words(ids: dict[str, int], merges: list[str]) -> None:
    """Check that merging yields each token itself, for files without `ignore_merges`.

    llama.cpp always looks whole words up first (`ignore_merges`), which changes nothing exactly when this holds.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for text in ids:
        if _merge(text, ranks) != [text]:
            raise CheckpointError(
                f"tokenizer.json lacks ignore_merges, which Llama 3's has, and {text[:40]!r} is not what merging "
                "gives. llama.cpp would tokenize differently, so this checkpoint cannot be converted."
            )


def _merge(text: str, ranks: dict[str, int]) -> list[str]:
    parts = list(text)
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(f"{parts[i]} {parts[i + 1]}", len(ranks)))
        if f"{parts[best]} {parts[best + 1]}" not in ranks:
            break
        parts[best : best + 2] = ["".join(parts[best : best + 2])]
    return parts


def _check_prompt_tokens(added: dict[int, tuple[str, int]]) -> None:
    control = {text for text, kind in added.values() if kind == TokenKind.CONTROL}
    if missing := [name for name in (BOS, START_HEADER, END_HEADER, END_OF_TURN) if name not in control]:
        raise CheckpointError(
            f"The added tokens of tokenizer.json lack Llama 3's {', '.join(missing)}. "
            "Check that tokenizer.json belongs to this checkpoint."
        )


def _named(settings: Fields, name: str, by_text: dict[str, int]) -> int:
    """Return the id of a token that tokenizer_config.json names, as a string or as an object."""
    value = settings.child(name).text("content") if isinstance(settings.raw(name), dict) else settings.text(name)
    if value not in by_text:
        raise CheckpointError(
            f"{name} of tokenizer_config.json is {value[:40]!r}, which is not a token of tokenizer.json. "
            "Check that both belong to this checkpoint."
        )
    return by_text[value]


def _adds_bos(fields: Fields) -> bool:
    """Return whether the published tokenizer puts a special token before a text."""
    value = fields.raw("post_processor")
    steps = value.get("processors", [value]) if isinstance(value, dict) else []
    for step in steps if isinstance(steps, list) else []:
        single = step.get("single") if isinstance(step, dict) else None
        if isinstance(single, list) and single and isinstance(single[0], dict) and "SpecialToken" in single[0]:
            return True
    return False
