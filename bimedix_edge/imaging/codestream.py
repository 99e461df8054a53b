"""Compare the header inside a compressed frame with the DICOM header, before a codec sees the frame.

A codec allocates what the codestream asks for, whatever the DICOM header says: 100 bytes that state 30000 x 30000
pixels, or 65,535 tiles, take gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bimedix_edge.errors import ImageError

__all__ = ["HeaderSize", "check_codestream", "check_rle", "check_scans", "jpeg_size"]

# a progressive JPEG is decoded once per scan; cameras and programs write about ten
_MAX_SCANS = 100
# a codec keeps about 6 kB per tile; usual tiles have 128 x 128 pixels or more, so 32 x 32 is generous
_MIN_TILE_PIXELS, _MAX_TILES = 32 * 32, 16384
# a codec keeps state for each layer of each precinct; pictures have a few thousand precincts and up to 12 layers
_MAX_LAYERS, _MAX_PACKETS = 256, 1 << 20
_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_START = b"\xff\xd8\xff"
_JP2_START = b"\x00\x00\x00\x0cjP  "
_SIZ, _COD, _SOT = 0xFF51, 0xFF52, 0xFF90
# SOF0 to SOF15 without DHT, JPG and DAC, and SOF55 of JPEG-LS; ITU T.81 B.1.1.3, T.87 C.1.1
_SOF = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}
_SOS = 0xFFDA
_MAX_SEGMENTS = 1000


@dataclass(frozen=True)
class HeaderSize:
    """Columns, rows and samples per pixel of a frame, as the DICOM header states them."""

    columns: int
    rows: int
    n_samples: int


def check_codestream(frame: bytes | memoryview, stated: HeaderSize, name: str) -> None:
    """Refuse a frame whose codestream contradicts the header, or asks for more than any picture needs.

    Args:
        frame: JPEG, JPEG-LS, JPEG 2000 or HTJ2K, or the start of it; the codec checks anything else.
        stated: The DICOM header's values.
        name: The file's name in messages.

    Raises:
        ImageError: The size or the samples differ, or there are too many tiles, layers, precincts or scans.

    Source: ITU-T T.81 B.2.2 (SOF), T.87 C.2.2 (JPEG-LS), T.800 A.5.1 and A.6.1 (SIZ, COD).
    """
    if frame[:8] == _JP2_START:
        frame = _unboxed(frame)
    if frame[:4] == _J2K_START:
        _check_j2k(frame, stated, name)
    elif frame[:3] == _JPEG_START:
        _check_jpeg(frame, stated, name)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height in the header of a JPEG, or None."""
    return next(((columns, rows) for columns, rows, _ in _jpeg_frames(data)), None)


def check_rle(frame: bytes | memoryview, stated: HeaderSize, bytes_per_sample: int, name: str) -> None:
    """Refuse RLE data longer than the least efficient coding of the frame: they decode to up to 64 times their size.

    Source: DICOM PS3.5 Annex G; a literal run of one byte takes two.
    """
    n_segments = stated.n_samples * bytes_per_sample
    most = 64 + n_segments * (2 * stated.columns * stated.rows + 2)
    if len(frame) > most:
        raise ImageError(
            f"{name} has {len(frame)} bytes of RLE, and {stated.columns} x {stated.rows} pixels take at most {most}. "
            "Export it again."
        )


def check_scans(data: bytes | memoryview, name: str) -> None:
    """Refuse a JPEG of more than 100 scans, which would take minutes."""
    if sum(1 for _ in re.finditer(b"\xff\xda", data)) > _MAX_SCANS:
        raise ImageError(
            f"{name} is a JPEG of more than {_MAX_SCANS} scans, which would take minutes to decode. Export it again."
        )


def _unboxed(frame: bytes | memoryview) -> bytes | memoryview:
    """Return the codestream in a JP2 file, which some programs write although DICOM wants it bare; T.800 I.4."""
    position = 0
    for _ in range(_MAX_SEGMENTS):
        head = bytes(frame[position : position + 16])
        if len(head) < 8:
            break
        length, kind = struct.unpack_from(">I4s", head)
        start = 16 if length == 1 else 8
        if kind == b"jp2c":
            return frame[position + start :]
        if length == 1 and len(head) == 16:
            length = struct.unpack_from(">Q", head, 8)[0]
        if length < start:
            break
        position += length
    return frame


def _check_size(columns: int, rows: int, n_samples: int, stated: HeaderSize, name: str) -> None:
    if HeaderSize(columns, rows, n_samples) != stated:
        raise ImageError(
            f"{name} contradicts its header: the compressed picture is {columns} x {rows} with {n_samples} samples per "
            f"pixel, the header states {stated.columns} x {stated.rows} with {stated.n_samples}. Export it again."
        )


def _check_jpeg(frame: bytes | memoryview, stated: HeaderSize, name: str) -> None:
    for columns, rows, n_samples in _jpeg_frames(frame):
        _check_size(columns, rows, n_samples, stated, name)
    check_scans(frame, name)


def _jpeg_frames(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield columns, rows and samples of each frame header before the first scan."""
    for marker, body in _segments(data, 2):
        if marker == _SOS:
            return
        if marker in _SOF and len(body) >= 6:
            _, rows, columns, n_samples = struct.unpack_from(">BHHB", body)
            yield columns, rows, n_samples


def _check_j2k(frame: bytes | memoryview, stated: HeaderSize, name: str) -> None:
    grid: _Grid | None = None
    for marker, body in _segments(frame, 2):
        if marker == _SOT:
            return
        if marker == _SIZ and len(body) >= 36:
            x, y, x0, y0, *tiles, n_samples = struct.unpack_from(">8IH", body, 2)
            _check_size(x - x0, y - y0, n_samples, stated, name)
            grid = _Grid((x, y), (x0, y0), (tiles[0], tiles[1]), (tiles[2], tiles[3]))
            most = min(1 + stated.columns * stated.rows // _MIN_TILE_PIXELS, _MAX_TILES)
            _check_count(grid.n_tiles(), "tiles", most, name)
        elif marker == _COD and len(body) >= 10 and grid is not None:
            (n_layers,) = struct.unpack_from(">H", body, 2)
            _check_count(n_layers, "layers", _MAX_LAYERS, name)
            _check_count(n_layers * _n_precincts(body, grid) * stated.n_samples, "packets", _MAX_PACKETS, name)


def _check_count(given: int, what: str, most: int, name: str) -> None:
    if given > most:
        raise ImageError(
            f"{name} states {given} {what} of a JPEG 2000 picture, more than the limit of {most}. Export it again."
        )


@dataclass(frozen=True)
class _Grid:
    """The reference grid of a JPEG 2000 picture, in (x, y): its end and start, and the size and start of its tiles."""

    end: tuple[int, int]
    start: tuple[int, int]
    tile: tuple[int, int]
    tile_start: tuple[int, int]

    def n_tiles(self) -> int:
        """Return how many tiles cover the picture; tiles of size 0 count as more than any limit."""
        if not all(self.tile):
            return 1 << 32
        counts = (-(-(self.end[axis] - self.tile_start[axis]) // self.tile[axis]) for axis in (0, 1))
        return next(counts) * next(counts)


def _n_precincts(cod: bytes, grid: _Grid) -> int:
    """Return how many precincts one component of the whole picture has, over all resolutions."""
    has_sizes, _, _, _, n_levels = struct.unpack_from(">BBHBB", cod)
    n_levels = min(n_levels, 32)
    n_precincts = 0
    for resolution in range(n_levels + 1):
        size = cod[10 + resolution] if has_sizes & 1 and 10 + resolution < len(cod) else 0xFF
        scale = n_levels - resolution
        across = ((grid.end[0] - grid.start[0]) >> scale >> (size & 15)) + 1
        n_precincts += across * (((grid.end[1] - grid.start[1]) >> scale >> (size >> 4)) + 1)
    return n_precincts


def _segments(frame: bytes | memoryview, position: int) -> Iterator[tuple[int, bytes]]:
    """Yield each marker from `position` on with its body, until the bytes are no marker."""
    for _ in range(_MAX_SEGMENTS):
        head = bytes(frame[position : position + 4])
        if head[:2] == b"\xff\xff":  # a fill byte; T.81 B.1.1.2
            position += 1
            continue
        if len(head) < 4 or head[0] != 0xFF:
            return
        marker, length = struct.unpack(">HH", head)
        yield marker, bytes(frame[position + 4 : position + 2 + length])
        position += 2 + max(length, 2)
