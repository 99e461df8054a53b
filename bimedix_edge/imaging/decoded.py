"""The result of every decoder, and the limit on size that all of them keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.notes import Note

__all__ = ["MAX_PIXELS", "Decoded", "check_size"]

# the largest mammograms have 5928 x 4728 = 28 million, telephones' photographs 48; a picture of 50 takes 350 MB
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Decoded:
    """Pixels, and how they came to be.

    Attributes:
        pixels: uint8 (h, w) grey or (h, w, 3) RGB.
        notes: The steps from the file to the pixels.
        warnings: What the user should know before believing an answer about them.
        tags: Attributes from the file's header that are on the allow-list; empty for rasters.
        n_frames: Frames in the file; 1 for rasters, of which only the first picture is read.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[Note, ...] = ()
    warnings: tuple[Note, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    n_frames: int = 1


def check_size(width: int, height: int, name: str) -> None:
    """Refuse a picture by the size in its header, before anything is decoded.

    Raises:
        ImageError: It has no pixels, or more than `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: its size is {width} x {height}. Export it again.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height / 1e6:.0f} megapixels, more than the limit of "
            f"{MAX_PIXELS // 1_000_000} megapixels. Scale it down first."
        )
