"""JSON of unknown origin: bounded, without duplicate keys, and read field by field with the expected type.

A checkpoint is a file from someone else. Python's parser keeps the last of two equal keys, reads `NaN`, and returns
any type. Each would turn a damaged or hostile file into wrong weights, or into a traceback far from its cause.
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
    """Read a JSON file that contains one object.

    Args:
        path: The file.
        max_bytes: Largest size that is read.

    Raises:
        CheckpointError: The file is missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(
                f"{path.name} has {size} bytes, more than the limit of {max_bytes}. Download the checkpoint again."
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}. Give the directory of a whole checkpoint.") from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error
    return Fields(parse_json(data, path.name), path.name)


def parse_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON, refusing duplicate keys, NaN and infinity.

    Args:
        data: The text, UTF-8.
        where: What it is, for the error message.

    Raises:
        CheckpointError: It does not parse.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where} is not valid JSON ({str(error)[:120]}). Download the checkpoint again."
        ) from error


class Fields:
    """The fields of one JSON object, each read with the expected type and range.

    Args:
        data: Parsed JSON value; only an object is accepted.
        where: Its place, for error messages.

    Raises:
        CheckpointError: From every method, if the field is missing without a default or has another type or range.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise CheckpointError(f"{where} is not a JSON object but {_shown(data)}. Download the checkpoint again.")
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
        """Return one of the allowed values; the converter supports no others."""
        value = self._get(name, default)
        for candidate in allowed:
            if type(value) is type(candidate) and value == candidate:
                return candidate
        raise self._wrong(name, value, " or ".join(_shown(item) for item in allowed))

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
        # null means the same as a missing field: transformers writes both
        value = self._data.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"The field {name} is missing in {self.where}. Download the checkpoint again.")
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{name} in {self.where} is {_shown(value)}, which this converter does not support. It supports {expected}."
        )


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = "a value that JSON does not have"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:_MAX_SHOWN]!r} appears twice")
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
