"""PNG, JPEG, TIFF, WebP, BMP and GIF to 8-bit pixels, with a note for every conversion that changes a value."""

from __future__ import annotations

import io
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.codestream import check_scans
from bimedix_edge.imaging.decoded import Decoded, check_size
from bimedix_edge.imaging.notes import Note, note
from bimedix_edge.imaging.sixteen_bit import scale, sixteen_bit_colour

__all__ = ["decode_raster"]

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 262, 0
_EXIF_ORIENTATION, _EXIF_MAKER, _EXIF_MODEL = 0x0112, 0x010F, 0x0110
_BAND_ROWS = 256

Level = TypeVar("Level", np.uint8, np.uint16)


def decode_raster(data: bytes, name: str, kind: str) -> Decoded:
    """Decode a picture; of an animation or of several pages, the first.

    Args:
        data: The whole file.
        name: The file's name in messages.
        kind: One of `sniff.RASTERS`.

    Raises:
        ImageError: It has too many pixels (by its header, before anything is decoded), or is truncated or damaged.
    """
    notes: list[Note] = []
    warnings: list[Note] = []
    try:
        if kind == "JPEG":
            check_scans(data, name)
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            check_size(image.width, image.height, name)
            deep = sixteen_bit_colour(image, data, name)
            _inspect(image, notes, warnings)  # not before: reading the EXIF of a PNG decodes it
            if deep is not None:
                pixels = _turned(_from_deep_colour(deep, notes), image, notes)
            else:
                image.load()
                pixels = _to_8_bit(_upright(image, notes), notes, inverted=_white_is_zero(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error …; their text may quote bytes of the file
        raise ImageError(f"{name} is damaged or truncated: it is not a whole {kind} image. Export it again.") from error
    return Decoded(np.ascontiguousarray(pixels), tuple(notes), tuple(warnings))


def _inspect(image: Image.Image, notes: list[Note], warnings: list[Note]) -> None:
    """Note what the header says: several pictures, a camera."""
    if getattr(image, "is_animated", False):
        notes.append(note("first_of_several"))
    exif = image.getexif()
    # a TIFF uses the same numbers for tags of its own, which may name a scanner
    if image.format != "TIFF" and (exif.get(_EXIF_MAKER) or exif.get(_EXIF_MODEL)):
        warnings.append(note("camera"))


def _white_is_zero(image: Image.Image) -> bool:
    """Return whether it is a deep TIFF whose lowest value is white; Pillow inverts only those of 8 bits."""
    tags = getattr(image, "tag_v2", {})
    return image.mode in _DEEP_GREY and tags.get(_TIFF_PHOTOMETRIC, 1) == _TIFF_WHITE_IS_ZERO


def _upright(image: Image.Image, notes: list[Note]) -> Image.Image:
    if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
        return image
    notes.append(note("turned_upright"))
    return ImageOps.exif_transpose(image)


def _turned(pixels: NDArray[np.uint8], image: Image.Image, notes: list[Note]) -> NDArray[np.uint8]:
    """Turn pixels that Pillow did not decode by the orientation in the file."""
    turned = Image.fromarray(pixels)
    turned.getexif()[_EXIF_ORIENTATION] = image.getexif().get(_EXIF_ORIENTATION, 1)
    return np.asarray(_upright(turned, notes))


def _to_8_bit(image: Image.Image, notes: list[Note], *, inverted: bool) -> NDArray[np.uint8]:
    if image.mode in _DEEP_GREY:
        code = {"F": "scaled_float", "I": "scaled_integer"}.get(image.mode, "scaled_16_bit")
        values = np.asarray(image)
        if image.mode == "I" and values.min() >= 0 and values.max() < 1 << 16:
            code = "scaled_16_bit"
        return scale(values, notes, code, inverted=inverted)
    if image.has_transparency_data:
        notes.append(note("transparent_on_black"))
        return _on_black(np.asarray(image.convert("RGBA")), 255)
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    if image.mode not in ("RGB", "P"):
        notes.append(note("converted_to_rgb", mode=image.mode))
    return np.asarray(image.convert("RGB"))


def _from_deep_colour(values: NDArray[np.uint16], notes: list[Note]) -> NDArray[np.uint8]:
    n_channels = values.shape[2]
    if n_channels in (2, 4):
        notes.append(note("transparent_on_black"))
        values = _on_black(values, 65535)
    levels = scale(values, notes, "scaled_16_bit_colour" if n_channels > 2 else "scaled_16_bit")
    return levels[..., 0] if n_channels == 2 else levels


def _on_black(values: NDArray[Level], opaque: int) -> NDArray[Level]:
    """Return the colours of (h, w, n + 1) `values` times their alpha (the last channel), in the same type."""
    shown: NDArray[Level] = np.empty((*values.shape[:2], values.shape[2] - 1), values.dtype)
    for top in range(0, len(values), _BAND_ROWS):  # in bands, since the products take four times the memory
        band = values[top : top + _BAND_ROWS].astype(np.uint32)
        shown[top : top + _BAND_ROWS] = (band[..., :-1] * band[..., -1:] + opaque // 2) // opaque
    return shown
