"""A look at a DICOM file before it is parsed: what is made to fill memory or stack is refused by its header.

It takes milliseconds and knows nothing of values. What it does not understand it leaves to pydicom, which runs in a
process of its own.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.decoded import check_size

__all__ = ["check_bounds", "inflated"]

# a picture that deflates to less than a hundredth is blank, or made to fill the memory
_MAX_INFLATION = 100
_ALWAYS_INFLATED_BYTES = 16 << 20
# structured reports nest about ten levels deep
_MAX_DEPTH = 32
# enough for every header's start; what follows is pydicom's
_MAX_ELEMENTS = 20_000
_MAX_STATED_BYTES = 1 << 30
_META_START = 132
_META = b"\x02\x00"
_TRANSFER_SYNTAX = b"\x02\x00\x10\x00UI"
_IMPLICIT, _EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
_DEFLATED, _BIG = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2"
# these have a length of 4 bytes after 2 that are reserved, all others one of 2; PS3.5 7.1.2
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS, _ROWS, _COLUMNS = 0x7FE00010, 0x00280010, 0x00280011


def check_bounds(data: bytes, name: str) -> None:
    """Refuse a file whose header states what no picture has.

    Raises:
        ImageError: sequences nested more than 32 deep, a length of gigabytes, more than 50 megapixels, or deflated data
            that grow to more than a hundred times their size.
    """
    plain = inflated(data, name)
    start = _meta_end(plain)
    syntax = _syntax(plain, start)
    little = syntax != _BIG
    explicit = plain[start + 4 : start + 6].isalpha() if not syntax else syntax != _IMPLICIT
    _Walk(plain, name, start, explicit=explicit, little=little).run()


def inflated(data: bytes, name: str) -> bytes:
    """Return a deflated file as the same file uncompressed, others as they are.

    Raises:
        ImageError: it grows beyond all use, or is cut off.
    """
    body = _meta_end(data)
    if _syntax(data, body) != _DEFLATED:
        return data
    limit = max(_ALWAYS_INFLATED_BYTES, _MAX_INFLATION * len(data))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data[body:], limit)
        reason = "" if inflater.eof else "its deflated data end too early"
    except zlib.error:
        plain, reason = b"", "its deflated data are damaged"
    if len(plain) >= limit:
        reason = f"it inflates to more than {_MAX_INFLATION} times its size"
    if reason:
        raise ImageError(f"Expected a whole DICOM file, but {name} is unusable: {reason}; export it uncompressed.")
    start = data.index(_DEFLATED, 0, body)
    return data[:start] + _EXPLICIT.ljust(len(_DEFLATED), b"\0") + data[start + len(_DEFLATED) : body] + plain


def _meta_end(data: bytes) -> int:
    """Return where the elements of group 2 end; their stated length is missing in some files."""
    position = _META_START if data[128:132] == b"DICM" else 0
    while data[position : position + 2] == _META:
        long = data[position + 4 : position + 6] in _LONG_VRS
        value = position + (12 if long else 8)
        position = value + int.from_bytes(data[value - (4 if long else 2) : value], "little")
    return position


def _syntax(data: bytes, end: int) -> bytes:
    """Return the transfer syntax that the meta information states, or nothing."""
    found = data.find(_TRANSFER_SYNTAX, 0, end)
    if found < 0:
        return b""
    return data[found + 8 : found + 8 + int.from_bytes(data[found + 6 : found + 8], "little")].rstrip(b"\0 ")


@dataclass
class _Element:
    tag: int
    vr: bytes
    length: int


class _Walk:
    """Goes through the elements in their order, into sequences and items, and remembers only how deep it is."""

    def __init__(self, data: bytes, name: str, start: int, *, explicit: bool, little: bool) -> None:
        self._data, self._name, self._position = data, name, start
        self._explicit, self._order = explicit, "<" if little else ">"
        self._ends: list[int | None] = []
        self._size: dict[int, int] = {}

    def run(self) -> None:
        """Walk until the pixels, the end, or something that is not understood."""
        for _ in range(_MAX_ELEMENTS):
            while self._ends and self._ends[-1] is not None and self._position >= self._ends[-1]:
                self._ends.pop()
            element = self._next()
            if element is None or not self._enter(element):
                return

    def _next(self) -> _Element | None:
        head = self._data[self._position : self._position + 12]
        if len(head) < 8:
            return None
        group, number = struct.unpack_from(f"{self._order}HH", head)
        tag = group << 16 | number
        vr = head[4:6] if self._explicit and group != 0xFFFE else b""
        if vr in _LONG_VRS:
            if len(head) < 12:
                return None
            self._position += 12
            return _Element(tag, vr, struct.unpack_from(f"{self._order}I", head, 8)[0])
        self._position += 8
        if vr and not vr.isalpha():
            return None
        return _Element(tag, vr, struct.unpack_from(f"{self._order}{'H' if vr else 'I'}", head, 6 if vr else 4)[0])

    def _enter(self, element: _Element) -> bool:
        """Go past an element, or into it; return whether to go on."""
        if element.tag in (_ITEM_END, _SEQUENCE_END):
            if self._ends:
                self._ends.pop()
            return bool(self._ends) or element.tag == _SEQUENCE_END
        if element.length != _UNDEFINED and element.length > max(_MAX_STATED_BYTES, len(self._data)):
            raise ImageError(
                f"Expected lengths that fit the file, but {self._name} states {element.length / 1e9:.1f} GB for one "
                f"element and has {len(self._data)} bytes; export it again."
            )
        if element.tag == _PIXELS:
            return False
        if element.vr == b"SQ" or element.tag == _ITEM or (not element.vr and element.length == _UNDEFINED):
            return self._descend(element.length)
        if element.length == _UNDEFINED:
            return False
        self._note_size(element)
        self._position += element.length
        return True

    def _descend(self, length: int) -> bool:
        self._ends.append(None if length == _UNDEFINED else self._position + length)
        # a level of nesting is a sequence and an item
        if len(self._ends) > 2 * _MAX_DEPTH:
            raise ImageError(
                f"Expected sequences nested at most {_MAX_DEPTH} deep, but {self._name} nests them deeper; "
                "export it again."
            )
        return True

    def _note_size(self, element: _Element) -> None:
        if self._ends or element.tag not in (_ROWS, _COLUMNS) or element.length != 2:
            return
        value = self._data[self._position : self._position + 2]
        self._size[element.tag] = int.from_bytes(value, "little" if self._order == "<" else "big")
        if len(self._size) == 2 and all(self._size.values()):
            check_size(self._size[_COLUMNS], self._size[_ROWS], self._name)
