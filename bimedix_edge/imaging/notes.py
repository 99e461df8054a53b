"""What was done to a picture, and what to know before an answer about it is believed: values, not sentences."""

from __future__ import annotations

from typing import ClassVar, TypedDict

import msgspec

from bimedix_edge.imaging import words

__all__ = ["Note", "NoteReport", "note"]

_LARGEST_WHOLE = 1 << 53


class NoteReport(TypedDict):
    """A note as JSON: code and fields for programs, the English sentence for people."""

    code: str
    fields: dict[str, str | int | float]
    text: str


class Note(msgspec.Struct, frozen=True):
    """A note or a warning.

    `str()` gives its English sentence.

    Attributes:
        code: What it says, for programs; its meaning never changes.
        fields: The numbers and words of its sentence, by name.
        sentences: The table that its code is in.
    """

    code: str
    fields: dict[str, str | int | float] = {}
    sentences: ClassVar[words.Sentences] = words.SENTENCES

    def text(self, language: words.Language = "en") -> str:
        """Return the sentence in a language, without a full stop."""
        return words.render(self.sentences, self.code, self.fields, language)

    def __str__(self) -> str:
        return self.text()

    def report(self) -> NoteReport:
        """Return the note as JSON."""
        return {"code": self.code, "fields": self.fields, "text": self.text()}


def note(code: str, **fields: str | int | float) -> Note:
    """Return a note; whole numbers become integers, as people write them."""
    return Note(code, {name: _whole(value) for name, value in fields.items()})


def _whole(value: str | int | float) -> str | int | float:
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return int(value)
    return value
