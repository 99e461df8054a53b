"""Arabic in terminals that do not reorder right-to-left text."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from bimedix_edge.cli.bidi import display_width, is_rtl, shape, wrap


def test_latin_is_left_alone() -> None:
    assert shape("No nodule, 12 mm.", rtl=False) == "No nodule, 12 mm."


def test_arabic_runs_from_the_right_in_joined_forms() -> None:
    shown = shape("نعم", rtl=True)
    assert [unicodedata.name(character) for character in shown] == [
        "ARABIC LETTER MEEM FINAL FORM",
        "ARABIC LETTER AIN MEDIAL FORM",
        "ARABIC LETTER NOON INITIAL FORM",
    ]


def test_numbers_and_drug_names_keep_their_order_inside_arabic() -> None:
    shown = shape("جرعة Aspirin 100 mg يوميا", rtl=True)
    assert "Aspirin 100 mg" in shown


def test_the_direction_is_the_paragraphs_not_the_lines() -> None:
    assert shape("CT صدر", rtl=True).endswith("CT")
    assert shape("CT صدر", rtl=False).startswith("CT")


def test_the_first_strong_character_decides() -> None:
    assert is_rtl("1) نعم yes")
    assert not is_rtl("1) yes نعم")
    assert not is_rtl("123")


def test_marks_take_no_column() -> None:
    assert display_width("مُحَمَّد") == 4
    assert display_width("漢") == 2


def test_lines_are_cut_at_spaces_and_long_words_inside() -> None:
    assert wrap("one two three", 7) == ["one two", "three"]
    assert wrap("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert wrap("", 4) == [""]


@given(st.text(alphabet="ab نعم1. ", max_size=80), st.integers(5, 30))
def test_wrapping_loses_nothing_and_keeps_the_width(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(display_width(line.strip()) <= width for line in lines)


@given(st.text(alphabet="ab نعم1.", min_size=1, max_size=60), st.text(alphabet="ab نعم1. ", max_size=30))
def test_a_complete_line_does_not_change_when_text_follows(text: str, more: str) -> None:
    complete = wrap(text, 12)[:-1]
    assert wrap(text + more, 12)[: len(complete)] == complete
