"""PNG and JPEG to uint8 RGB, with every conversion that changes a value stated."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.sniff import READABLE

__all__ = ["MAX_PIXELS", "decode_raster"]

MAX_PIXELS = 64_000_000
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode_raster(data: bytes, name: str) -> tuple[NDArray[np.uint8], list[str]]:
    """Decode a PNG or JPEG.

    Args:
        data: the whole file.
        name: what messages call it.

    Returns:
        uint8 (h, w, 3) RGB, and what was done to get there, in words.

    Raises:
        ImageError: too many pixels (found in the header, before anything is decoded), truncated, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as image:
            _check_size(image.size, name)
            image.load()
            notes: list[str] = []
            pixels = _to_rgb(_upright(image, notes), notes)
    except ImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's codecs raise OSError, SyntaxError, ValueError, struct.error, zlib.error …
        raise ImageError(
            f"Expected a whole PNG or JPEG image, but {name} is damaged or truncated ({error}); export it again."
        ) from error
    return np.ascontiguousarray(pixels), notes


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"Expected at most {MAX_PIXELS // 1_000_000} megapixels, but {name} has {width} x {height} = "
            f"{width * height / 1e6:.0f}; scale it down first."
        )
    if width < 1 or height < 1:
        raise ImageError(f"Expected at least one pixel, but {name} has {width} x {height}; export it again.")


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.size != image.size or image.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright as its EXIF orientation says")
    return upright


def _to_rgb(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(np.asarray(image), notes)
    if image.has_transparency_data:
        notes.append("transparent parts shown on black")
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, rgba).convert("RGB"))
    if image.mode not in ("RGB", "L"):
        notes.append(f"converted from {image.mode} to RGB")
    return np.asarray(image.convert("RGB"))


def _from_sixteen_bit(values: NDArray[np.generic], notes: list[str]) -> NDArray[np.uint8]:
    """Scale the range that occurs to 0..255; Pillow's own conversion would clip everything above 255 to white."""
    levels = values.astype(np.int64)
    low, high = int(levels.min()), int(levels.max())
    notes.append(f"16-bit values {low} to {high} scaled to 0 to 255")
    # all alike: nothing to spread, and a division by zero
    span = max(high - low, 1)
    grey = ((levels - low) * 255 + span // 2) // span
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
