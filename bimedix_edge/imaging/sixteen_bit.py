"""Pictures of more than 8 bits a channel, whole: Pillow keeps only the high byte of their colours."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.grey import Display, Range, render, value_range

__all__ = ["scale", "sixteen_bit_colour"]

# decoded twice and put together, each takes six times what it takes in 8 bits
_MAX_COLOUR_PIXELS = 16_000_000
_CHANNELS = ("RGB", "RGBA", "RGBX")


def sixteen_bit_colour(image: Image.Image, data: bytes, name: str) -> NDArray[np.uint16] | None:
    """Return all bits of a picture with 16 bits a channel, or None if it is not one.

    Args:
        image: the opened file, nothing decoded.
        data: the file.
        name: what messages call it.

    Returns:
        uint16 (h, w, 2) grey and alpha, (h, w, 3) RGB or (h, w, 4) RGBA.

    Raises:
        ImageError: it has too many pixels for this.

    Pillow's rawmodes "RGB;16B" and "RGB;16L" keep the first and the second byte of each pair, so decoding twice gives
    both; 16-bit grey with alpha is decoded as if it were 8-bit RGBA, which takes the same four bytes a pixel.
    """
    rawmode = _rawmode(image)
    channels, _, order = rawmode.partition(";16")
    if not order or (channels not in _CHANNELS and rawmode != "LA;16B"):
        return None
    if image.width * image.height > _MAX_COLOUR_PIXELS:
        raise ImageError(
            f"Expected at most {_MAX_COLOUR_PIXELS // 1_000_000} megapixels with 16 bits a colour, but {name} has "
            f"{image.width} x {image.height}; scale it down or export it with 8 bits."
        )
    if channels == "LA":
        both = _bytes_as(data, str(image.format), "RGBA")
        return _joined(both[..., 0::2], both[..., 1::2])
    if order == "N":  # libtiff has put them into the order of this machine
        order = "B" if sys.byteorder == "big" else "L"
    high = _bytes_as(data, str(image.format), f"{channels};16{order}")
    low = _bytes_as(data, str(image.format), f"{channels};16{'L' if order == 'B' else 'B'}")
    return _joined(high, low)[..., : 3 if channels == "RGBX" else None]


def scale(values: NDArray[Any], notes: list[str], what: str, *, inverted: bool = False) -> NDArray[np.uint8]:
    """Return `values` with the range that occurs scaled to 0..255, and say which it was.

    Args:
        values: any shape; NaN becomes black, infinities become the ends.
        notes: takes the words.
        what: such as `16-bit`.
        inverted: whether the lowest value is white.
    """
    low, high = value_range(values, None) or (0.0, 0.0)
    notes.append(f"{what} values {low:.9g} to {high:.9g} scaled to 0 to 255{', the lowest white' * inverted}")
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
    """Return what the file decodes to when its samples are unpacked as `rawmode` says."""
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        tiles: list[Any] = getattr(image, "tile", [])
        image.tile = [
            tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode) for tile in tiles
        ]
        return np.asarray(image).astype(np.uint16)
