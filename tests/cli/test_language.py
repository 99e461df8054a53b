"""The language of notes and warnings in the terminal, and Arabic lines in visual order."""

from __future__ import annotations

import io
import locale

import pytest

from bimedix_edge.cli.bidi import shape
from bimedix_edge.cli.language import language_of, locale_language, warning_line
from bimedix_edge.cli.terminal import displayed
from bimedix_edge.imaging.notes import note
from bimedix_edge.planning.words import PlanWarning

WARNING = note("burned_in_text")


class _Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Is there a nodule?", "en"),
        ("هل توجد عقيدة رئوية؟", "ar"),
        ("هل يظهر استرواح الصدر في صورة CT هذه؟", "ar"),
        ("What does عقيدة mean?", "en"),
        ("", "en"),
        ("12/3?", "en"),
    ],
)
def test_the_script_of_most_letters_decides(question: str, language: str) -> None:
    assert language_of(question) == language


@pytest.mark.parametrize(
    ("name", "language"), [("ar_EG", "ar"), ("Arabic_Egypt", "ar"), ("en_GB", "en"), (None, "en"), ("arn_CL", "en")]
)
def test_the_locale_decides_where_there_is_no_question(
    monkeypatch: pytest.MonkeyPatch, name: str | None, language: str
) -> None:
    monkeypatch.setattr(locale, "getlocale", lambda: (name, "UTF-8"))
    assert locale_language() == language


def test_warnings_are_lines_of_their_own_in_both_languages() -> None:
    assert warning_line(WARNING, "en") == f"Warning: {WARNING}."
    assert warning_line(WARNING, "ar") == f"تحذير: {WARNING.text('ar')}."
    plan = PlanWarning("long_context", {"ctx_size": 8192, "trained": 4096})
    assert warning_line(plan, "ar").startswith("تحذير: طول السياق 8192 ")


def test_arabic_is_reordered_only_on_a_terminal_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = warning_line(WARNING, "ar")
    assert displayed(line, io.StringIO(), reorder=True) == line
    cut = displayed(line, _Screen(), reorder=False).split("\n")
    assert " ".join(cut) == line
    shown = displayed(line, _Screen(), reorder=True).split("\n")
    assert [part.strip() for part in shown] == [shape(part, rtl=True) for part in cut]
    assert {len(part) for part in shown} == {39}  # at the right edge
