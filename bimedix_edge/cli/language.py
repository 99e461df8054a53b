"""The language in which the terminal shows notes and warnings."""

from __future__ import annotations

import locale
import unicodedata

from bimedix_edge.imaging.notes import Note
from bimedix_edge.imaging.words import Language

__all__ = ["language_of", "locale_language", "warning_line"]

_WARNING: dict[Language, str] = {"en": "Warning: {text}.", "ar": "تحذير: {text}."}


def language_of(question: str) -> Language:
    """Return the language of a question: Arabic if more of its letters are Arabic than not, else English."""
    letters = [character for character in question if character.isalpha()]
    n_arabic = sum(unicodedata.bidirectional(letter) == "AL" for letter in letters)
    return "ar" if 2 * n_arabic > len(letters) else "en"


def locale_language() -> Language:
    """Return the language of commands that have no question: Arabic in an Arabic locale, else English.

    A locale that the system has not installed counts as English.
    """
    name, _ = locale.getlocale()
    return "ar" if (name or "").lower().startswith(("ar_", "arabic")) else "en"


def warning_line(warning: Note, language: Language) -> str:
    """Return a warning as a line of its own."""
    return _WARNING[language].format(text=warning.text(language))
