"""PNG, JPEG, TIFF, WebP, BMP and GIF to 8-bit pixels, with every conversion that changes a value stated."""

from __future__ import annotations

import io
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.codestream import check_scans
from bimedix_edge.imaging.decoded import Decoded, check_size
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
        data: the whole file.
        name: what messages call it.
        kind: one of `sniff.RASTERS`.

    Raises:
        ImageError: too many pixels (found in the header, before anything is decoded), truncated, or damaged.
    """
    notes: list[str] = []
    warnings: list[str] = []
    try:
        if kind == "JPEG":
            check_scans(data, name)
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            check_size(image.width, image.height, name)
            deep = sixteen_bit_colour(image, data, name)
            _look(image, notes, warnings)  # afterwards: asking a PNG for its EXIF decodes it
            if deep is not None:
                pixels = _turned(_from_deep_colour(deep, notes), image, notes)
            else:
                image.load()
                pixels = _to_8_bit(_upright(image, notes), notes, inverted=_white_is_zero(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error … whose text may hold bytes of the file
        raise ImageError(
            f"Expected a whole {kind} image, but {name} is damaged or truncated; export it again."
        ) from error
    return Decoded(np.ascontiguousarray(pixels), tuple(notes), tuple(warnings))


def _look(image: Image.Image, notes: list[str], warnings: list[str]) -> None:
    """Say what can be told before anything is decoded."""
    if getattr(image, "is_animated", False):
        notes.append("the first of several pictures in the file")
    exif = image.getexif()
    # TIFF's own tags have these numbers, too: there they may name a scanner
    if image.format != "TIFF" and (exif.get(_EXIF_MAKER) or exif.get(_EXIF_MODEL)):
        warnings.append(
            "a camera took it: a photograph of a screen or a film shows the model less than the file itself"
        )


def _white_is_zero(image: Image.Image) -> bool:
    """Return whether it is a deep TIFF whose lowest value is white; Pillow turns only those of 8 bits round."""
    tags = getattr(image, "tag_v2", {})
    return image.mode in _DEEP_GREY and tags.get(_TIFF_PHOTOMETRIC, 1) == _TIFF_WHITE_IS_ZERO


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
        return image
    notes.append("turned upright as its EXIF orientation says")
    return ImageOps.exif_transpose(image)


def _turned(pixels: NDArray[np.uint8], image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    """Turn pixels that did not come through Pillow as the file's orientation says."""
    turned = Image.fromarray(pixels)
    turned.getexif()[_EXIF_ORIENTATION] = image.getexif().get(_EXIF_ORIENTATION, 1)
    return np.asarray(_upright(turned, notes))


def _to_8_bit(image: Image.Image, notes: list[str], *, inverted: bool) -> NDArray[np.uint8]:
    if image.mode in _DEEP_GREY:
        what = {"F": "floating-point", "I": "integer"}.get(image.mode, "16-bit")
        values = np.asarray(image)
        if image.mode == "I" and values.min() >= 0 and values.max() < 1 << 16:
            what = "16-bit"
        return scale(values, notes, what, inverted=inverted)
    if image.has_transparency_data:
        notes.append("transparent parts shown on black")
        return _on_black(np.asarray(image.convert("RGBA")), 255)
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    if image.mode not in ("RGB", "P"):
        notes.append(f"converted from {image.mode} to RGB")
    return np.asarray(image.convert("RGB"))


def _from_deep_colour(values: NDArray[np.uint16], notes: list[str]) -> NDArray[np.uint8]:
    n_channels = values.shape[2]
    if n_channels in (2, 4):
        notes.append("transparent parts shown on black")
        values = _on_black(values, 65535)
    levels = scale(values, notes, "16-bit colour" if n_channels > 2 else "16-bit")
    return levels[..., 0] if n_channels == 2 else levels


def _on_black(values: NDArray[Level], opaque: int) -> NDArray[Level]:
    """Return the colours of (h, w, n + 1) `values` times their alpha, the last channel, in the same type."""
    shown: NDArray[Level] = np.empty((*values.shape[:2], values.shape[2] - 1), values.dtype)
    for top in range(0, len(values), _BAND_ROWS):  # in bands, since the products need four times the room
        band = values[top : top + _BAND_ROWS].astype(np.uint32)
        shown[top : top + _BAND_ROWS] = (band[..., :-1] * band[..., -1:] + opaque // 2) // opaque
    return shown
