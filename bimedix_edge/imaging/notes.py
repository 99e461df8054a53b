"""What was done to a picture, and what to know before an answer about it is believed: values, not sentences."""

from __future__ import annotations

import msgspec

__all__ = ["Note"]


class Note(msgspec.Struct, frozen=True):
    """A note or a warning.

    Attributes:
        code: What it says, for programs; its meaning never changes.
        fields: The numbers and words of its sentence, by name.
    """

    code: str
    fields: dict[str, str | int | float] = {}
