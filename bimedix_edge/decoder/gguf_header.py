"""The header of an untrusted GGUF, read with bounds: gguf-py's reader hangs on hostile files.

Source: llama.cpp `ggml/include/gguf.h`, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = ["MAGIC", "Cursor", "GgufHeader", "TensorInfo", "read_header"]

MAGIC = b"GGUF"
_MAX_TENSORS = 20_000
_MAX_KEYS = 1_000
_MAX_TEXT_BYTES = 1 << 16
_MAX_DIMS = 4
_MAX_VALUES = 1 << 40
_DEFAULT_ALIGNMENT = 32
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        dims: Dimensions, fastest first.
        kind: ggml type.
        start: Offset of the data in the file.
    """

    dims: tuple[int, ...]
    kind: int
    start: int

    @property
    def n_values(self) -> int:
        """Return the number of its values."""
        return prod(self.dims)


@dataclass(frozen=True)
class GgufHeader:
    """Keys and tensors of a GGUF; an array is represented by its length."""

    keys: dict[str, Any]
    tensors: dict[str, TensorInfo]


class Cursor:
    """A place in bytes of unknown origin.

    Raises:
        ValueError: From every method, if the bytes end or hold an impossible size.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.position = 0

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes."""
        if not 0 <= n_bytes <= len(self._data) - self.position:
            raise ValueError(f"it ends within {n_bytes} bytes at {self.position}")
        self.position += n_bytes
        return self._data[self.position - n_bytes : self.position]

    def number(self, code: str, high: float = float("inf")) -> Any:
        """Return the next little-endian number of a `struct` code, at most `high`."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        if not value <= high:
            raise ValueError(f"the number {value} before byte {self.position} is above {high}")
        return value

    def text(self, length_code: str = "Q") -> str:
        """Return the next string: its length, then UTF-8."""
        return bytes(self.take(self.number(length_code, _MAX_TEXT_BYTES))).decode("utf-8")


def read_header(data: bytes | memoryview) -> GgufHeader:
    """Read the header of a GGUF.

    Args:
        data: Contents of the file.

    Raises:
        ValueError: It is no GGUF, or it is damaged; the message says where.
    """
    cursor = Cursor(data)
    if bytes(cursor.take(4)) != MAGIC or cursor.number("I") not in (2, 3):
        raise ValueError("it is no GGUF of version 2 or 3")
    n_tensors, n_keys = cursor.number("Q", _MAX_TENSORS), cursor.number("Q", _MAX_KEYS)
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        name = cursor.text()
        keys[name] = _value(cursor, cursor.number("I"))
    infos = [(cursor.text(), *_tensor(cursor)) for _ in range(n_tensors)]
    alignment = keys.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment {alignment} is no power of two")
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: TensorInfo(dims, kind, start + offset) for name, dims, kind, offset in infos}
    if len(tensors) != n_tensors:
        raise ValueError("two of its tensors have one name")
    return GgufHeader(keys, tensors)


def _tensor(cursor: Cursor) -> tuple[tuple[int, ...], int, int]:
    dims = tuple(cursor.number("Q", _MAX_VALUES) for _ in range(cursor.number("I", _MAX_DIMS)))
    if not dims or prod(dims) > _MAX_VALUES:
        raise ValueError(f"a tensor has the dimensions {dims}")
    return dims, cursor.number("I"), cursor.number("Q", _MAX_VALUES)


def _value(cursor: Cursor, kind: int) -> Any:
    if kind == _TEXT:
        return cursor.text()
    if kind == _ARRAY:
        item, length = cursor.number("I"), cursor.number("Q", _MAX_VALUES)
        if item == _TEXT:
            for _ in range(length):  # the file ends before a lie about the length takes long
                cursor.text()
        elif item in _SCALARS:
            cursor.take(length * struct.calcsize("<" + _SCALARS[item]))
        else:
            raise ValueError(f"an array has items of the unknown type {item}")
        return length
    if kind not in _SCALARS:
        raise ValueError(f"a key has the unknown type {kind}")
    return cursor.number(_SCALARS[kind])
