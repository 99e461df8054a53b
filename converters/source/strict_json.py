"""JSON of unknown origin: bounded, without duplicate keys, and read field by field with the type that is expected.

A checkpoint is somebody else's file. Python's parser keeps the last of two equal keys, reads `NaN`, and gives whatever
type the file has; each would turn a damaged or hostile file into wrong weights or a traceback far from its cause.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bimedix_edge.errors import CheckpointError

__all__ = ["Fields", "parse_json", "read_json"]

_Choice = TypeVar("_Choice", str, int)
_MAX_SHOWN = 60


def read_json(path: Path, max_bytes: int) -> Fields:
    """Read a JSON file that holds one object.

    Args:
        path: the file.
        max_bytes: the largest size that is read.

    Raises:
        CheckpointError: it is missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(
                f"Expected at most {max_bytes} bytes in {path.name}, but it has {size}; download the checkpoint again."
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"Expected {path.name} in {path.parent}, but there is none; give the directory of a whole checkpoint."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"Expected to read {path}, but the system says '{error.strerror}'; check the path and its permissions."
        ) from error
    return Fields(parse_json(data, path.name), path.name)


def parse_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON, refusing duplicate keys, NaN and infinity.

    Args:
        data: the text, UTF-8.
        where: what it is, for the message.

    Raises:
        CheckpointError: it does not parse.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Expected JSON in {where}, but it does not parse ({str(error)[:120]}); download the checkpoint again."
        ) from error


class Fields:
    """The fields of one JSON object, each read with the type and range that is expected.

    Args:
        data: a parsed JSON value; anything but an object is refused.
        where: its place, for messages.

    Raises:
        CheckpointError: from every method, if the field is missing without a default or is of another type or range.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise CheckpointError(
                f"Expected an object in {where}, but it holds {_shown(data)}; download the checkpoint again."
            )
        self._data: Mapping[str, Any] = data
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._data.get(name) is not None

    def keys(self) -> list[str]:
        """Return the names of all fields, in the file's order."""
        return list(self._data)

    def raw(self, name: str) -> Any:
        """Return a field as parsed, or None."""
        return self._data.get(name)

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 24) -> int:
        """Return an integer between `low` and `high`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        """Return a finite number above `low` and at most `high`."""
        value = self._get(name, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low < value <= high:
            raise self._wrong(name, value, f"a number above {low:g} and at most {high:g}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return a boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def choice(self, name: str, allowed: Sequence[_Choice], default: _Choice | None = None) -> _Choice:
        """Return one of the allowed values; anything else is something this converter has no code for."""
        value = self._get(name, default)
        for candidate in allowed:
            if type(value) is type(candidate) and value == candidate:
                return candidate
        raise self._wrong(name, value, " or ".join(repr(item) for item in allowed))

    def child(self, name: str) -> Fields:
        """Return a nested object."""
        return Fields(self._get(name, None), f"{self.where}: {name}")

    def items(self, name: str) -> list[Any]:
        """Return an array."""
        value = self._get(name, None)
        if not isinstance(value, list):
            raise self._wrong(name, value, "an array")
        return value

    def _get(self, name: str, default: Any) -> Any:
        # a null means the same as a field that is left out: transformers writes both
        value = self._data.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(
                f"Expected the field {name} in {self.where}, but there is none; download the checkpoint again."
            )
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"Expected {name} in {self.where} to be {expected}, but it is {_shown(value)}; "
            "this converter has no code for that."
        )


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:_MAX_SHOWN]!r} appears twice")
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")
