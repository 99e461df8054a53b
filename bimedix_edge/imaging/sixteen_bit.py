"""All bits of pictures with 16 bits per channel; Pillow keeps only the high byte of their colours."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.grey import Display, Range, render, value_range
from bimedix_edge.imaging.notes import Note, note

__all__ = ["scale", "sixteen_bit_colour"]

# decoding twice and joining takes six times the memory of 8 bits
_MAX_COLOUR_PIXELS = 16_000_000
_CHANNELS = ("RGB", "RGBA", "RGBX")


def sixteen_bit_colour(image: Image.Image, data: bytes, name: str) -> NDArray[np.uint16] | None:
    """Return all bits of a picture with 16 bits per channel, or None for any other picture.

    Args:
        image: The opened file, not decoded yet.
        data: The whole file.
        name: The file's name in messages.

    Returns:
        uint16 (h, w, 2) grey and alpha, (h, w, 3) RGB or (h, w, 4) RGBA.

    Raises:
        ImageError: It has too many pixels for this.

    Pillow's rawmodes "RGB;16B" and "RGB;16L" keep the first and the second byte of each pair, so decoding twice gives
    both. 16-bit grey with alpha is decoded as 8-bit RGBA, which has the same four bytes per pixel.
    """
    rawmode = _rawmode(image)
    channels, _, order = rawmode.partition(";16")
    if not order or (channels not in _CHANNELS and rawmode != "LA;16B"):
        return None
    if image.width * image.height > _MAX_COLOUR_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels with 16 bits per colour, more than the limit of "
            f"{_MAX_COLOUR_PIXELS // 1_000_000} megapixels for these. Scale it down or export it with 8 bits."
        )
    if channels == "LA":
        both = _bytes_as(data, str(image.format), "RGBA")
        return _joined(both[..., 0::2], both[..., 1::2])
    if order == "N":  # libtiff has swapped them to the order of this machine
        order = "B" if sys.byteorder == "big" else "L"
    high = _bytes_as(data, str(image.format), f"{channels};16{order}")
    low = _bytes_as(data, str(image.format), f"{channels};16{'L' if order == 'B' else 'B'}")
    return _joined(high, low)[..., : 3 if channels == "RGBX" else None]


def scale(values: NDArray[Any], notes: list[Note], code: str, *, inverted: bool = False) -> NDArray[np.uint8]:
    """Return `values` with their range scaled to 0..255, and note that range.

    Args:
        values: Any shape; NaN becomes black, infinities become the ends.
        notes: The list that gets the notes.
        code: Code of the note, such as `scaled_16_bit`.
        inverted: Whether the lowest value is white.
    """
    low, high = value_range(values, None) or (0.0, 0.0)
    notes.append(note(code, low=low, high=high))
    if inverted:
        notes.append(note("white_is_zero"))
    return render(values, Display(None, Range(low, high), inverted))


def _joined(high: NDArray[np.uint16], low: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.left_shift(high, 8, dtype=np.uint16) | low


def _rawmode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None) or []
    return _first(tiles[0][3]) if tiles else ""


def _first(arguments: Any) -> str:
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""


def _bytes_as(data: bytes, kind: str, rawmode: str) -> NDArray[np.uint16]:
    """Decode the file with its samples unpacked by a rawmode of Pillow's."""
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        tiles: list[Any] = getattr(image, "tile", [])
        image.tile = [
            tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode) for tile in tiles
        ]
        return np.asarray(image).astype(np.uint16)
