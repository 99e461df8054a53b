"""Foreign text, such as the name of a file, made safe for one line of a terminal."""

from __future__ import annotations

import unicodedata

__all__ = ["one_line"]

# these reverse the text after them, so that one name can look like another; the marks LRM and RLM are harmless
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def one_line(text: str) -> str:
    r"""Return `text` with control characters written out: a line break as \n, an escape as \x1b."""
    return "".join(_written_out(character) for character in text)


def _written_out(character: str) -> str:
    is_control = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING
    return character.encode("unicode_escape").decode("ascii") if is_control else character
