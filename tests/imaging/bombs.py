"""Files made to fill memory or to take forever, and the words of the errors that refuse them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from imaging.phantoms import dataset, encapsulated, saved, stored_values, written
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

VALUES = stored_values(8, signed=False)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG")
    return buffer.getvalue()


def _small(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(VALUES).convert("L" if kind != "WEBP" else "RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def _tiff() -> bytes:
    """30000 x 30000 in the directory's entries for width and height."""
    data = _small("TIFF", compression="tiff_lzw")
    for tag in (256, 257):
        place = next(place for kind in (3, 4) if (place := data.find(struct.pack("<HHI", tag, kind, 1))) > 0)
        data = data[:place] + struct.pack("<HHII", tag, 4, 1, 30000) + data[place + 12 :]
    return data


def _webp() -> bytes:
    """16384 x 16384, the largest size of a lossless WebP: two numbers of 14 bits."""
    data = _small("WEBP", lossless=True)
    place = data.index(b"VP8L") + 9
    (rest,) = struct.unpack_from("<I", data, place)
    return data[:place] + struct.pack("<I", rest | (1 << 28) - 1) + data[place + 4 :]


def _gif() -> bytes:
    data = _small("GIF")
    return data[:6] + struct.pack("<HH", 30000, 30000) + data[10:]


def _deflated(n_bytes: int, noise_bytes: int = 0) -> bytes:
    """Pixels of zeros that deflate to a thousandth, after noise that does not."""
    values = np.zeros((1, n_bytes // 2), np.uint16)
    values[0, : noise_bytes // 2] = np.random.default_rng(0).integers(0, 65536, noise_bytes // 2)
    made = dataset(values[:, :60000], 16)
    made.PixelData = values.tobytes()
    return written(made, "deflated")


def _nested(*, undefined: bool = False) -> bytes:
    inner = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.ReferencedSeriesSequence = Sequence([inner])
        outer["ReferencedSeriesSequence"].is_undefined_length = undefined
        inner = outer
    made = dataset(VALUES, 8)
    made.ReferencedSeriesSequence = inner.ReferencedSeriesSequence
    return saved(made)


def _length(tag: bytes) -> bytes:
    """A file that states 4 GB for one element."""
    data = written(dataset(stored_values(16, signed=False), 16))
    place = data.index(tag)
    if data[place + 4 : place + 6] == b"OW":
        return data[: place + 8] + struct.pack("<I", 0xFFFFFFF0) + data[place + 12 :]
    return data[:place] + tag[:4] + b"UT\0\0" + struct.pack("<I", 0xFFFFFFF0) + data[place + 8 :]


def _size() -> bytes:
    made = dataset(VALUES, 8)
    made.Rows = made.Columns = 65535
    return saved(made)


def _meta_elements() -> bytes:
    """Two million empty elements in the meta information."""
    return b"\0" * 128 + b"DICM" + b"\x02\0\x16\0AE\0\0" * 2_000_000


def _j2k(*, size: int | None = None, tile: int | None = None, layers: int | None = None) -> bytes:
    """A codestream that contradicts the header, or states too much."""
    data = bytearray(written(dataset(VALUES, 8), "JPEG 2000 lossless"))
    siz, cod = data.index(b"\xff\x4f\xff\x51") + 2, data.index(b"\xff\x52\x00")
    if size is not None:
        data[siz + 6 : siz + 14] = struct.pack(">II", size, size)
    if tile is not None:
        data[siz + 22 : siz + 30] = struct.pack(">II", tile, tile)
    if layers is not None:
        data[cod + 6 : cod + 8] = struct.pack(">H", layers)
    return bytes(data)


def _in_boxes() -> bytes:
    """30000 x 30000 in a JP2 file, which DICOM wants bare, but codecs read."""
    (frame,) = _frames(_j2k(size=30000))
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 8, b"free") + struct.pack(">I4s", 0, b"jp2c")
    return encapsulated(dataset(VALUES, 8), uid.JPEG2000Lossless, boxes + frame)


def _frames(data: bytes) -> list[bytes]:
    import pydicom
    from pydicom.encaps import generate_frames

    return list(generate_frames(pydicom.dcmread(io.BytesIO(data)).PixelData, number_of_frames=1))


def _jpeg(syntax: str, size: int) -> bytes:
    """A frame header (SOF) that states another size."""
    data = written(dataset(VALUES, 8), syntax)
    markers = (b"\xff\xc0\x00\x0b", b"\xff\xc3\x00\x0b", b"\xff\xf7\x00\x0b")
    place = next(data.index(marker) for marker in markers if marker in data)
    return data[: place + 5] + struct.pack(">HH", size, size) + data[place + 9 :]


def _scans() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(VALUES).save(buffer, "JPEG", progressive=True)
    frame = buffer.getvalue()
    place = frame.rindex(b"\xff\xda")
    return encapsulated(dataset(VALUES, 8), uid.JPEGBaseline8Bit, frame[:place] + frame[place:-2] * 5000 + frame[-2:])


def _rle() -> bytes:
    """Runs of 128 equal bytes, for five thousand times as many pixels as the header states."""
    runs = b"\x81\0" * (VALUES.size * 5000 // 128)
    return encapsulated(dataset(VALUES, 8), uid.RLELossless, struct.pack("<16I", 1, 64, *[0] * 14) + runs)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of 9000 x 9000": (_png, "50 megapixels"),
    "TIFF of 30000 x 30000": (_tiff, "50 megapixels"),
    "WebP of 16384 x 16384": (_webp, "50 megapixels"),
    "GIF of 30000 x 30000": (_gif, "50 megapixels"),
    "deflated 1000:1, 60 MB": (lambda: _deflated(60_000_000), "states 60 MB"),
    "deflated, 2 MB of noise before 400 MB": (lambda: _deflated(400_000_000, 2_000_000), "states 400 MB"),
    "200 nested sequences": (_nested, "nested"),
    "200 nested sequences of undefined length": (lambda: _nested(undefined=True), "nested"),
    "4 GB of pixels": (lambda: _length(b"\xe0\x7f\x10\x00OW"), "states 4.3 GB"),
    "4 GB of text": (lambda: _length(b"\x10\x00\x20\x00LO"), "states 4.3 GB"),
    "65535 x 65535": (_size, "50 megapixels"),
    "JPEG 2000 of 30000 x 30000": (lambda: _j2k(size=30000), "picture is 30000 x 30000"),
    "JPEG 2000 of 30000 x 30000 in a JP2 file": (_in_boxes, "picture is 30000 x 30000"),
    "JPEG 2000 in tiles of 1 x 1": (lambda: _j2k(tile=1), "tiles"),
    "JPEG 2000 of 65535 layers": (lambda: _j2k(layers=65535), "layers"),
    "JPEG of 65500 x 65500": (lambda: _jpeg("JPEG baseline", 65500), "picture is 65500 x 65500"),
    "JPEG lossless of 65500 x 65500": (lambda: _jpeg("JPEG lossless", 65500), "picture is 65500 x 65500"),
    "JPEG-LS of 65500 x 65500": (lambda: _jpeg("JPEG-LS", 65500), "picture is 65500 x 65500"),
    "JPEG of 5000 scans": (_scans, "100 scans"),
    "RLE 5000 times too long": (_rle, "bytes of RLE"),
}
