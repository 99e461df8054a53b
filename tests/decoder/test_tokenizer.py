"""llama.cpp's tokenizer on our vocabulary against the tokenizers library on the checkpoint's tokenizer.json."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer

from bimedix_edge.runtime import Runtime
from bimedix_edge.store import demo_checkpoint

N_STRINGS = 10_000
_ENGLISH = "the nodule in left upper zone? Isn't it 12mm; I'll CHECK heart's size we've normal".split()
_ARABIC = "هل توجد عقيدة رئوية في الرئة اليمنى؟ انصباب جنبي، القلب مُتَضَخِّم ١٢٣ الـصدر لا".split()
_EMOJI = ["😀", "🫁", "👩‍⚕️", "🇸🇦", "❤️", "🏥"]
_SPACES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u200f", "\u200d", " \n ", "\u3000"]


def _random_string(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        words = rng.choices(_ENGLISH, k=rng.randint(1, 20))
    elif kind == 1:
        words = rng.choices(_ARABIC, k=rng.randint(1, 20))
    elif kind == 2:
        words = rng.choices([*_ENGLISH, *_ARABIC, *_EMOJI, "3.5", "2026", "١٥", "mg/dL"], k=rng.randint(1, 20))
    elif kind == 3:
        words = rng.choices([*_EMOJI, "!", "?!", "…", "—", "«»", "()"], k=rng.randint(1, 12))
    elif kind == 4:
        words = [chr(rng.choice([rng.randrange(0x20), 0x7F, rng.randrange(0x80, 0xA0)])) for _ in range(8)]
        words += rng.choices(_ENGLISH, k=2)
    else:
        words = [_any_character(rng) for _ in range(rng.randint(1, 30))]
    return "".join(word + rng.choice([" ", "", "", rng.choice(_SPACES)]) for word in words)


def _any_character(rng: random.Random) -> str:
    while True:
        code = rng.choice([rng.randrange(1, 0x250), rng.randrange(0x600, 0x700), rng.randrange(1, 0x110000)])
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_checkpoint() / "tokenizer.json"))


def test_ten_thousand_random_strings(runtime: Runtime, tokenizer: Tokenizer) -> None:
    rng = random.Random(20)
    different = []
    for _ in range(N_STRINGS):
        text = _random_string(rng)
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        if runtime.engine.decoder.tokenize(text) != expected:
            different.append(text)
    assert different == []


def test_tokens_give_back_the_text(runtime: Runtime) -> None:
    rng = random.Random(21)
    for _ in range(500):
        text = _random_string(rng)
        pieces = [runtime.engine.decoder.piece(token) for token in runtime.engine.decoder.tokenize(text)]
        assert b"".join(pieces).decode("utf-8") == text


def test_every_byte_has_a_token(runtime: Runtime) -> None:
    decoder = runtime.engine.decoder
    assert {decoder.piece(token) for token in range(decoder.spec.n_vocab)} >= {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize("name", ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<pad>"])
def test_special_text_is_plain_text(runtime: Runtime, name: str) -> None:
    decoder = runtime.engine.decoder
    special = decoder.special(name)
    tokens = decoder.tokenize(f"a {name} b")
    assert special not in tokens
    assert b"".join(decoder.piece(token) for token in tokens).decode() == f"a {name} b"
