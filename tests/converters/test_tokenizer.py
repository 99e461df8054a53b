"""The vocabulary: equal to the published one, tokenized by llama.cpp as the tokenizers library does, or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_model import LlamaModel
from make_checkpoint import Edits, Shape, edit_json, make_checkpoint, tokenizer_config, tokenizer_json, write_json

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.source.tokenizer import SPLIT_PATTERN, TokenKind, byte_alphabet, read_vocabulary
from bimedix_edge.converters.synthetic.tokenizer import published_vocabulary, real_tokenizer_json
from bimedix_edge.errors import CheckpointError

SMALL = Shape(n_embd=32, n_ff=32, n_layer=1, n_head=2, n_head_kv=1, n_vocab=128320)
PIECES = (
    "nodule", "The ", " the", "رئة", "عقيدة", "اليسرى؟", "\u0640", "٣", "123456", "12", " ", "  ", "\n", "\r\n\n", "\t",
    "🫁", "👩🏽‍⚕️", "'s", "'LL", "é", "e\u0301", "ﷺ", "\u200f", "\u00a0", "\x00", "\x07", "\x7f", "…", "中文", "½", "ß",
    "<|eot_id|>", "<image>", "#$%^", "()", "_", "\ufeff", "\U0010ffff", "I've", "ʼ",
)  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_json(tmp_path / "tokenizer.json", tokenizer_json())
    write_json(tmp_path / "tokenizer_config.json", tokenizer_config())
    return tmp_path


@pytest.fixture(scope="module")
def published(llama3_vocab: Path) -> dict[str, list[Any]]:
    return published_vocabulary(llama3_vocab)


@pytest.fixture(scope="module")
def llama3_checkpoint(llama3_vocab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny checkpoint whose tokenizer.json has the published vocabulary, and `<pad>` as BiMediX2 adds it."""
    directory = tmp_path_factory.mktemp("llama3") / "checkpoint"
    real = real_tokenizer_json(llama3_vocab)
    make_checkpoint(directory, shape=SMALL, edits=Edits(tokenizer=lambda value: value.update(real)))
    convert(directory, directory.with_name("bundle"), ConvertOptions(file_type="F16"))
    return directory


@pytest.fixture(scope="module")
def llama3_model(llama3_checkpoint: Path) -> LlamaModel:
    return LlamaModel(llama3_checkpoint.with_name("bundle") / "decoder.gguf", vocab_only=True)


def test_published_vocabulary_comes_back(published: dict[str, list[Any]], llama3_checkpoint: Path) -> None:
    vocabulary = read_vocabulary(llama3_checkpoint, 128320)
    assert vocabulary.tokens[:128256] == published["tokens"]
    assert vocabulary.kinds[:128256] == published["token_type"]
    assert vocabulary.merges == published["merges"]
    assert vocabulary.tokens[128256:128258] == ["<pad>", "[PAD128257]"]
    assert vocabulary.kinds[128256:] == [TokenKind.CONTROL] + [TokenKind.UNUSED] * 63
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (128000, 128009, 128256)
    assert vocabulary.add_bos


def test_llama_cpp_own_cases(llama3_vocab: Path, llama3_model: LlamaModel) -> None:
    texts = Path(f"{llama3_vocab}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    lines = Path(f"{llama3_vocab}.out").read_text().splitlines()
    assert len(texts) == len(lines) == 46
    for text, line in zip(texts, lines, strict=True):
        assert llama3_model.tokenize(text) == [int(number) for number in line.split()], repr(text)


def test_as_the_tokenizers_library(llama3_checkpoint: Path, llama3_model: LlamaModel) -> None:
    _compare_with_tokenizers(llama3_checkpoint, llama3_model, 2000)


def test_as_the_tokenizers_library_with_a_small_vocabulary(checkpoint: Path, bundle: Path) -> None:
    with LlamaModel(bundle / "decoder.gguf", vocab_only=True) as model:
        _compare_with_tokenizers(checkpoint, model, 500)


def _compare_with_tokenizers(directory: Path, model: LlamaModel, count: int) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    reference.encode_special_tokens = True  # a question's `<|eot_id|>` is text
    rng = random.Random(0)
    for _ in range(count):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))
        assert model.tokenize(text) == reference.encode(text, add_special_tokens=False).ids, repr(text)


def test_merges_as_strings_or_pairs(directory: Path) -> None:
    strings = read_vocabulary(directory, 288)
    write_json(directory / "tokenizer.json", tokenizer_json(pairs=True))
    assert read_vocabulary(directory, 288) == strings
    assert strings.merges[:3] == ["Ġ t", "h e", "Ġt he"]


def test_names_as_strings_or_objects(directory: Path) -> None:
    before = read_vocabulary(directory, 288)
    edit_json(directory / "tokenizer_config.json", lambda value: value.update(eos_token="<|eot_id|>"))
    assert read_vocabulary(directory, 288) == before


def test_pad_is_found_by_its_text_or_left_out(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", lambda value: value.pop("pad_token"))
    assert read_vocabulary(directory, 288).pad_id == 269
    edit_json(directory / "tokenizer.json", lambda value: value["added_tokens"].pop())
    assert read_vocabulary(directory, 288).pad_id is None


def test_bos_in_a_sequence_of_processors(directory: Path) -> None:
    def nest(value: dict[str, Any]) -> None:
        steps = [{"type": "ByteLevel", "trim_offsets": False}, value["post_processor"]]
        value["post_processor"] = {"type": "Sequence", "processors": steps}

    edit_json(directory / "tokenizer.json", nest)
    assert read_vocabulary(directory, 288).add_bos
    edit_json(directory / "tokenizer.json", lambda value: value.update(post_processor=None))
    assert not read_vocabulary(directory, 288).add_bos


def test_added_words_are_user_defined(directory: Path) -> None:
    word = {"id": 270, "content": "radiograph", "special": False}
    edit_json(directory / "tokenizer.json", lambda value: value["added_tokens"].append(word))
    vocabulary = read_vocabulary(directory, 288)
    assert (vocabulary.tokens[270], vocabulary.kinds[270]) == ("radiograph", TokenKind.USER_DEFINED)


def test_without_ignore_merges_if_it_makes_no_difference(directory: Path) -> None:
    edit_json(directory / "tokenizer.json", lambda value: value["model"].pop("ignore_merges"))
    assert read_vocabulary(directory, 288).tokens[256] == "Ġt"


def test_without_ignore_merges_if_it_makes_one(directory: Path) -> None:
    def add_whole_word(value: dict[str, Any]) -> None:
        value["model"]["ignore_merges"] = False
        value["model"]["vocab"]["Ġnodule"] = 270

    edit_json(directory / "tokenizer.json", add_whole_word)
    with pytest.raises(CheckpointError, match=r"lacks ignore_merges.* 'Ġnodule' is not what merging gives"):
        read_vocabulary(directory, 288)


def test_byte_alphabet_is_that_of_gpt2() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert (alphabet[0x20], alphabet[0x0A], alphabet[0x41], alphabet[0xAD], alphabet[0xFF]) == ("Ġ", "Ċ", "A", "Ń", "ÿ")


def _model(value: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = value["model"]
    return model


def _split(value: dict[str, Any]) -> dict[str, Any]:
    split: dict[str, Any] = value["pre_tokenizer"]["pretokenizers"][0]
    return split


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "wordpiece": (lambda v: _model(v).update(type="WordPiece"), "its model is WordPiece instead of BPE"),
    "byte_fallback": (lambda v: _model(v).update(byte_fallback=True), "options of other tokenizers"),
    "suffix": (lambda v: _model(v).update(end_of_word_suffix="</w>"), "options of other tokenizers"),
    "normalizer": (lambda v: v.update(normalizer={"type": "NFC"}), "changes the text by a normalizer"),
    "gpt2_split": (
        lambda v: _split(v).update(pattern={"Regex": SPLIT_PATTERN.replace("{1,3}", "+")}),
        "another pattern than Llama 3's",
    ),
    "no_split": (lambda v: v.update(pre_tokenizer=None), "another pattern"),
    "split_removed": (lambda v: _split(v).update(behavior="Removed"), "another pattern"),
    "prefix_space": (
        lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "another pattern",
    ),
    "no_byte": (lambda v: _model(v)["vocab"].pop("Ā"), "^1 of the 256 bytes have no token in tokenizer.json, 0x00"),
    "no_eot": (lambda v: v["added_tokens"].pop(4), r"added tokens of tokenizer.json lack Llama 3's <\|eot_id\|>"),
    "merge_of_three": (lambda v: _model(v)["merges"].append("a b c"), "does not join two tokens into a third"),
    "merge_of_unknown": (lambda v: _model(v)["merges"].append("Ġ zzz"), "does not join two tokens into a third"),
    "merge_as_number": (lambda v: _model(v)["merges"].append(7), "does not join two tokens into a third"),
    "same_id": (lambda v: _model(v)["vocab"].update(xyz=5), "are equal, empty or invalid, or share an id"),
    "empty_token": (lambda v: _model(v)["vocab"].update({"": 270}), "are equal, empty or invalid, or share an id"),
    "same_text": (
        lambda v: v["added_tokens"].append({"id": 270, "content": "[PAD271]"}),
        "are equal, empty or invalid, or share an id",
    ),
    "added_over_word": (
        lambda v: v["added_tokens"].append({"id": 5, "content": "other"}),
        "are equal, empty or invalid, or share an id",
    ),
    "added_twice": (
        lambda v: v["added_tokens"].append({"id": 264, "content": "other"}),
        "shares its id 264, or has another id",
    ),
    "half_a_character": (
        lambda v: _model(v)["vocab"].update({"\ud800": 270}),
        "are equal, empty or invalid, or share an id",
    ),
    "negative_id": (lambda v: _model(v)["vocab"].update(xyz=-1), "a whole number from 0"),
    "id_as_text": (lambda v: _model(v)["vocab"].update(xyz="5"), "a whole number from 0"),
    "no_model": (lambda v: v.pop("model"), "The field model is missing in tokenizer.json"),
    "vocab_as_list": (lambda v: _model(v).update(vocab=[]), "tokenizer.json: model: vocab is not a JSON object"),
    "added_as_text": (lambda v: v["added_tokens"].append("x"), "tokenizer.json: added_tokens is not a JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str, directory: Path) -> None:
    edit, message = BAD[case]
    value = tokenizer_json()
    edit(value)
    (directory / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(directory, 288)


def test_vocabulary_longer_than_the_embedding(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the embedding's 269 rows: tokenizer\.json has 270 tokens"):
        read_vocabulary(directory, 269)


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_named_token_must_exist(name: str, directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", lambda value: value.update({name: "</s>"}))
    with pytest.raises(CheckpointError, match=f"{name} of tokenizer_config.json is '</s>', which is not a token"):
        read_vocabulary(directory, 288)
    edit_json(directory / "tokenizer_config.json", lambda value: value.pop(name))
    with pytest.raises(CheckpointError, match=f"The field {name} is missing"):
        read_vocabulary(directory, 288)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file(name: str, directory: Path) -> None:
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        read_vocabulary(directory, 288)
