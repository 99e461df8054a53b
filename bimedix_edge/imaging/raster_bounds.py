"""The size in the first bytes of a raster file: refusing a picture by it takes neither a codec nor a process.

Pillow checks the size, too, but only after it has parsed more of the file, and with messages of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bimedix_edge.imaging.codestream import jpeg_size
from bimedix_edge.imaging.decoded import check_size

__all__ = ["check_raster_bounds"]

Size = tuple[int, int]
_MAX_TIFF_ENTRIES = 1000
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_SHORT = 256, 257, 3


def check_raster_bounds(data: bytes, kind: str, name: str) -> None:
    """Refuse a picture by the size in its header. If that is not found, the decoder checks it.

    Args:
        data: The whole file.
        kind: One of `sniff.RASTERS`.
        name: The file's name in messages.

    Raises:
        ImageError: It has no pixels, or more than `MAX_PIXELS`.
    """
    try:
        size = _READERS[kind](data)
    except struct.error:  # cut off in its header, which the decoder reports
        return
    if size is not None:
        check_size(*size, name)


def _png(data: bytes) -> Size | None:
    width, height = struct.unpack_from(">II", data, 16)  # IHDR is the first chunk
    return width, height


def _gif(data: bytes) -> Size | None:
    width, height = struct.unpack_from("<HH", data, 6)  # the logical screen
    return width, height


def _bmp(data: bytes) -> Size | None:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return width, abs(height)  # a negative height means rows from the top


def _webp(data: bytes) -> Size | None:
    """Source: RFC 9649, 2.5 to 2.7."""
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (both,) = struct.unpack_from("<I", data, 21)
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff(data: bytes) -> Size | None:
    """Source: TIFF 6.0, section 2: the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (n_entries,) = struct.unpack_from(f"{order}H", data, start)
    found: dict[int, int] = {}
    for position in range(start + 2, start + 2 + 12 * min(n_entries, _MAX_TIFF_ENTRIES), 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, position)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            (found[tag],) = struct.unpack_from(f"{order}{'H' if kind == _TIFF_SHORT else 'I'}", data, position + 8)
    return (found[_TIFF_WIDTH], found[_TIFF_HEIGHT]) if len(found) == 2 else None


_READERS: dict[str, Callable[[bytes], Size | None]] = {
    "PNG": _png,
    "JPEG": jpeg_size,
    "TIFF": _tiff,
    "WebP": _webp,
    "BMP": _bmp,
    "GIF": _gif,
}
