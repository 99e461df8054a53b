"""One door for pictures: a path, bytes, an array or a Pillow image becomes a `Picture`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.raster import MAX_PIXELS, decode_raster
from bimedix_edge.imaging.sniff import READABLE, sniff

__all__ = ["MAX_FILE_BYTES", "ImageSource", "Picture", "load_picture"]

ImageSource = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image

MAX_FILE_BYTES = 512 << 20


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8 (h, w, 3), RGB, C-contiguous.
        sha256: of the file's bytes, or of the pixels where there was no file.
        format: what the bytes were, such as `PNG`.
        notes: what was done to get the pixels, in words; empty when nothing was.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    format: str
    notes: tuple[str, ...] = field(default=())

    @property
    def width_px(self) -> int:
        """Return the width."""
        return int(self.pixels.shape[1])

    @property
    def height_px(self) -> int:
        """Return the height."""
        return int(self.pixels.shape[0])


def load_picture(source: ImageSource) -> Picture:
    """Read an image from a path, from a file's bytes, from uint8 (h, w, 3) or (h, w) pixels, or from Pillow.

    Raises:
        ImageError: it cannot be read, is no PNG or JPEG, is damaged, or has more than 64 megapixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "array")
    if isinstance(source, Image.Image):
        return _from_array(np.asarray(source.convert("RGB")), "Pillow image")
    if isinstance(source, bytes):
        return _from_bytes(source, "the image")
    path = Path(source)
    return _from_bytes(_read(path), path.name)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"Expected an image file, but {path} is a directory; name a file in it.")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"Expected an image file, but {path} cannot be read ({reason}); check its name and permissions."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"Expected at most {MAX_FILE_BYTES >> 20} MiB, but {path} is larger; scale it down first.")
    return data


def _from_bytes(data: bytes, name: str) -> Picture:
    if not data:
        raise ImageError(f"Expected an image, but {name} is empty (0 bytes); export it again.")
    kind = sniff(data)
    if kind not in READABLE:
        given = f"is {kind}" if kind else "is no image format that is known"
        raise ImageError(f"Expected a {' or '.join(READABLE)} image, but {name} {given}; convert it to PNG.")
    pixels, notes = decode_raster(data, name)
    return Picture(pixels, hashlib.sha256(data).hexdigest(), kind, tuple(notes))


def _from_array(pixels: NDArray[np.uint8], name: str) -> Picture:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ImageError(
            f"Expected uint8 pixels of shape (h, w, 3) or (h, w), but the {name} is {pixels.dtype} {pixels.shape}; "
            "scale 16-bit values to 8 bits and drop other channels first."
        )
    if not 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
        raise ImageError(
            f"Expected 1 to {MAX_PIXELS} pixels, but the {name} is {pixels.shape[1]} x {pixels.shape[0]}; scale it."
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, hashlib.sha256(pixels.data).hexdigest(), name)
