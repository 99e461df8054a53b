"""Right-to-left text for terminals that do not reorder it themselves; display only, never in a pipe or a file."""

from __future__ import annotations

import unicodedata

from arabic_reshaper import ArabicReshaper
from bidi.algorithm import get_display

__all__ = ["display_width", "is_rtl", "shape", "wrap"]

# vowel marks are kept: they change the meaning of a word
_RESHAPER = ArabicReshaper({"delete_harakat": False, "support_ligatures": False})


def is_rtl(text: str) -> bool:
    """Return whether a paragraph runs from right to left, by its first strong character (UAX 9, P2 and P3)."""
    for character in text:
        direction = unicodedata.bidirectional(character)
        if direction in ("R", "AL", "L"):
            return direction != "L"
    return False


def display_width(text: str) -> int:
    """Return the terminal columns of `text`: marks take 0, East Asian wide characters 2."""
    width = 0
    for character in text:
        if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
            continue
        width += 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
    return width


def shape(line: str, *, rtl: bool) -> str:
    """Return one display line in visual order, left to right, with Arabic letters in their joined forms.

    A terminal that does not reorder would join letters in the wrong direction, so the forms are chosen here.

    Args:
        line: The line in logical order, already cut to the terminal's width.
        rtl: Whether its paragraph runs from right to left.

    Source: Unicode Standard Annex 9, as implemented by python-bidi.
    """
    if all(unicodedata.bidirectional(character) not in ("R", "AL", "AN") for character in line):
        return line
    result = get_display(_RESHAPER.reshape(line), base_dir="R" if rtl else "L")
    return result if isinstance(result, str) else result.decode("utf-8")


def wrap(text: str, width: int) -> list[str]:
    """Cut one paragraph at spaces into lines of at most `width` columns; longer words are cut.

    Cut lines before reordering them: the other way round, the end of a sentence would come on the first line.
    """
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        candidate = f"{line} {word}" if line else word
        if display_width(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        line = word
        while display_width(line) > width:
            cut = _fit(line, width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line]


def _fit(text: str, width: int) -> int:
    """Return how many characters of `text` fit into `width` columns; at least one."""
    used = 0
    for index, character in enumerate(text):
        used += display_width(character)
        if used > width:
            return max(index, 1)
    return len(text)
