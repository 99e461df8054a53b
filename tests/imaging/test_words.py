"""Notes and warnings: both languages have every code with the same fields, and every code is used with its fields."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import msgspec
import pytest

from bimedix_edge.imaging import words
from bimedix_edge.imaging.notes import Note, note
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.planning import words as plan_words
from bimedix_edge.planning.words import PlanWarning

TABLES = {"pictures": words.SENTENCES, "plans": plan_words.SENTENCES}
ROOMS = {"pictures": Path(words.__file__).parent, "plans": Path(plan_words.__file__).parent}
# a count for each plural category, and the form that it has
ARABIC = {0: "other", 1: "one", 2: "two", 3: "few", 110: "few", 11: "other", 99: "other", 100: "other", 1000: "other"}


def _fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def _forms(entry: str | dict[str, str]) -> list[str]:
    return [entry] if isinstance(entry, str) else list(entry.values())


@pytest.mark.parametrize("table", TABLES)
def test_both_languages_have_every_code_with_the_same_fields(table: str) -> None:
    sentences = TABLES[table]
    assert sentences["en"].keys() == sentences["ar"].keys()
    for code in sentences["en"]:
        found = [
            set.union(*(_fields(form) for form in _forms(sentences[language][code])))  # type: ignore[arg-type]
            for language in words.LANGUAGES
        ]
        assert found[0] == found[1], code
        for language in words.LANGUAGES:
            for form in _forms(sentences[language][code]):  # type: ignore[arg-type]
                assert form == form.strip(" ."), f"{code} ends as a sentence, but others follow it"
                assert any("\u0600" <= letter <= "\u06ff" for letter in form) == (language == "ar"), code


@pytest.mark.parametrize("table", TABLES)
def test_every_code_is_used_and_notes_have_the_fields_of_their_sentences(table: str) -> None:
    sentences = TABLES[table]["en"]
    constants: set[str] = set()
    for path in ROOMS[table].glob("*.py"):
        if path.name == "words.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                constants.add(node.value)
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "note"):
                continue
            given = {keyword.arg for keyword in node.keywords}
            (code,) = node.args
            if isinstance(code, ast.Constant):
                wanted = set.union(*(_fields(form) for form in _forms(sentences[code.value])))  # type: ignore[index, arg-type]
                assert given == wanted, code.value
    assert sentences.keys() <= constants


def test_numbers_have_up_to_nine_digits_and_keep_their_sign_in_arabic() -> None:
    found = note("window", center=-40.0, width=1 / 3)
    assert found.fields == {"center": -40, "width": 1 / 3}
    assert str(found) == "window: center -40, width 0.333333333"
    # the mark keeps the sign to the left of its number
    assert found.text("ar") == "النافذة: المركز \u200e-40، العرض 0.333333333"
    assert found.report() == {"code": "window", "fields": found.fields, "text": str(found)}


@pytest.mark.parametrize("n", ARABIC)
def test_arabic_counts_have_their_plurals(n: int) -> None:
    forms = words.SENTENCES["ar"]["unreadable_files"]
    assert not isinstance(forms, str)
    assert note("unreadable_files", n=n).text("ar") == forms[ARABIC[n]].format(n=n)
    assert (str(note("unreadable_files", n=n)).startswith("a DICOM file ")) == (n == 1)


def test_every_preset_and_side_has_an_arabic_name() -> None:
    assert {*PRESETS, "left", "right", "both sides"} == words.NAMES["ar"].keys()
    assert note("preset_window", preset="lung", center=-600, width=1500).text("ar").startswith("نافذة الرئة: ")


def test_plan_warnings_have_sentences_of_their_own() -> None:
    found = PlanWarning("memory_short", {"need_gb": 12.0, "free_gb": 3.04})
    assert "12.0 GB of memory are needed and 3.0 GB are free now" in str(found)
    assert "12.0 غيغابايت" in found.text("ar")


def test_notes_survive_json() -> None:
    found = (
        note("tiny", width=3, height=4),
        note("converted_to_rgb", mode="CMYK"),
        note("rescaled", slope=0.5, intercept=1),
    )
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[Note, ...]) == found
