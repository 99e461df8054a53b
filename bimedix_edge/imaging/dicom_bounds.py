"""A check of a DICOM file before pydicom parses it: headers made to fill memory or stack are refused.

The check takes milliseconds and does not read values. It leaves what it does not understand to pydicom, which runs in
a process of its own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.codestream import HeaderSize, check_codestream, check_rle
from bimedix_edge.imaging.decoded import check_size

__all__ = ["check_bounds", "inflated"]

# a picture that deflates to less than a hundredth is blank, or made to fill memory
_MAX_INFLATION = 100
_ALWAYS_INFLATED_BYTES = 16 << 20
# the limit for files that are not deflated
_MAX_INFLATED_BYTES = 512 << 20
_PIECE_BYTES, _INFLATED_PIECE_BYTES = 64 << 10, 2 << 20
# structured reports nest about ten levels deep
_MAX_DEPTH = 32
# enough for the start of any header; pydicom checks the rest
_MAX_ELEMENTS = 20_000
_MAX_STATED_BYTES = 1 << 30
_META_START = 132
_META = b"\x02\x00"
_TRANSFER_SYNTAX = b"\x02\x00\x10\x00UI"
_IMPLICIT, _EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
_DEFLATED, _BIG, _RLE = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5"
# their length has 4 bytes after 2 reserved ones, that of all others has 2; PS3.5 7.1.2
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00010
_SAMPLES, _ROWS, _COLUMNS, _BITS = _STATED = 0x00280002, 0x00280010, 0x00280011, 0x00280100
_MAX_META_ELEMENTS = 100


def check_bounds(data: bytes, name: str) -> None:
    """Refuse a file whose header no picture can have.

    Raises:
        ImageError: Its sequences are nested more than 32 deep, a length is gigabytes, it has more than 50 megapixels, a
            codestream contradicts the header, or deflated data grow to more than a hundred times their size.
    """
    start = _meta_end(data)
    syntax = _syntax(data, start)
    if syntax == _DEFLATED:
        head = next(_pieces(memoryview(data)[start:], name), b"")
        _Walk(head, name, _Encoding(syntax, explicit=True), 0, _most_inflated(len(data))).run()
        inflated(data, name, kept=False)
        return
    explicit = data[start + 4 : start + 6].isalpha() if not syntax else syntax != _IMPLICIT
    _Walk(data, name, _Encoding(syntax, explicit), start, max(_MAX_STATED_BYTES, len(data))).run()


def inflated(data: bytes, name: str, *, kept: bool = True) -> bytes:
    """Return a deflated file as the same file uncompressed, any other file as it is.

    Args:
        data: The whole file.
        name: The file's name in messages.
        kept: Whether to return the inflated bytes; otherwise they are only counted.

    Raises:
        ImageError: It inflates beyond the limit, or is cut off.
    """
    body = _meta_end(data)
    if _syntax(data, body) != _DEFLATED:
        return data
    pieces: list[bytes] = []
    n_bytes, limit = 0, _most_inflated(len(data))
    for piece in _pieces(memoryview(data)[body:], name):
        if kept:
            pieces.append(piece)
        n_bytes += len(piece)
        if n_bytes > limit:
            raise _unusable(name, f"it inflates from {len(data) / (1 << 20):.1f} MiB to more than {limit >> 20}")
    start = data.index(_DEFLATED, 0, body)
    syntax = _EXPLICIT.ljust(len(_DEFLATED), b"\0")
    return b"".join((data[:start], syntax, data[start + len(_DEFLATED) : body], *pieces))


def _most_inflated(n_bytes: int) -> int:
    return min(max(_ALWAYS_INFLATED_BYTES, _MAX_INFLATION * n_bytes), _MAX_INFLATED_BYTES)


def _pieces(deflated: memoryview, name: str) -> Iterator[bytes]:
    """Yield inflated data, at most 2 MiB at a time."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for start in range(0, len(deflated), _PIECE_BYTES):
            given: bytes | memoryview = deflated[start : start + _PIECE_BYTES]
            while not inflater.eof:
                piece = inflater.decompress(given, _INFLATED_PIECE_BYTES)
                given = inflater.unconsumed_tail
                yield piece
                if len(piece) < _INFLATED_PIECE_BYTES:
                    break
            if inflater.eof:
                return
    except zlib.error as error:
        raise _unusable(name, "its deflated data are damaged") from error
    raise _unusable(name, "its deflated data end too early")


def _unusable(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} is a DICOM file that cannot be used: {reason}. Export it uncompressed.")


def _meta_end(data: bytes) -> int:
    """Return the offset after the elements of group 2; some files do not state their length."""
    position = _META_START if data[128:132] == b"DICM" else 0
    for _ in range(_MAX_META_ELEMENTS):
        if data[position : position + 2] != _META:
            break
        long = data[position + 4 : position + 6] in _LONG_VRS
        value = position + (12 if long else 8)
        position = value + int.from_bytes(data[value - (4 if long else 2) : value], "little")
    return position


def _syntax(data: bytes, end: int) -> bytes:
    """Return the transfer syntax in the meta information, or nothing."""
    found = data.find(_TRANSFER_SYNTAX, 0, end)
    if found < 0:
        return b""
    return data[found + 8 : found + 8 + int.from_bytes(data[found + 6 : found + 8], "little")].rstrip(b"\0 ")


@dataclass(frozen=True)
class _Encoding:
    """How a file writes its elements: its transfer syntax, and whether elements state their types (VR)."""

    syntax: bytes
    explicit: bool


@dataclass
class _Element:
    tag: int
    vr: bytes
    length: int


class _Walk:
    """Walks through the elements in order, into sequences and items, and keeps only the ends of those it is in.

    Args:
        data: The file, or the start of its inflated elements.
        name: The file's name in messages.
        encoding: How elements are written.
        start: Offset of the first element.
        most_bytes: The largest length that one element may state.
    """

    def __init__(self, data: bytes, name: str, encoding: _Encoding, start: int, most_bytes: int) -> None:
        self._data, self._name, self._position, self._most_bytes = data, name, start, most_bytes
        self._syntax, self._explicit = encoding.syntax, encoding.explicit
        self._order = ">" if encoding.syntax == _BIG else "<"
        self._ends: list[int | None] = []
        self._stated: dict[int, int] = {}

    def run(self) -> None:
        """Walk to the pixels, the end, or an element that cannot be understood."""
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
        """Go past an element, or into it; return whether to continue."""
        if element.tag in (_ITEM_END, _SEQUENCE_END):
            if self._ends:
                self._ends.pop()
            return bool(self._ends) or element.tag == _SEQUENCE_END
        if element.length != _UNDEFINED and element.length > self._most_bytes:
            stated = f"{element.length / 1e9:.1f} GB" if element.length >= 1e9 else f"{element.length / 1e6:.0f} MB"
            raise ImageError(
                f"{self._name} has a wrong header: it states {stated} for one element, more than its size allows. "
                "Export it again."
            )
        if element.tag == _PIXELS and not self._ends:
            if element.length == _UNDEFINED:
                self._check_fragments()
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
                f"{self._name} has sequences nested more than {_MAX_DEPTH} deep. No picture needs that. Export it "
                "again."
            )
        return True

    def _note_size(self, element: _Element) -> None:
        if self._ends or element.tag not in _STATED or element.length != 2:
            return
        value = self._data[self._position : self._position + 2]
        self._stated[element.tag] = int.from_bytes(value, "little" if self._order == "<" else "big")
        if self._stated.get(_COLUMNS) and self._stated.get(_ROWS):
            check_size(self._stated[_COLUMNS], self._stated[_ROWS], self._name)

    def _check_fragments(self) -> None:
        """Compare the start of each codestream with the header; each frame begins with a new fragment; PS3.5 A.4."""
        if any(tag not in self._stated for tag in _STATED):
            return
        stated = HeaderSize(self._stated[_COLUMNS], self._stated[_ROWS], self._stated[_SAMPLES])
        whole = memoryview(self._data)
        for number in range(_MAX_ELEMENTS):
            element = self._next()
            if element is None or element.tag != _ITEM:
                return
            fragment = whole[self._position : self._position + element.length]
            if self._syntax != _RLE:
                check_codestream(fragment, stated, self._name)
            elif number:  # the first item is the offset table
                check_rle(fragment, stated, self._stated[_BITS] // 8, self._name)
            self._position += element.length
