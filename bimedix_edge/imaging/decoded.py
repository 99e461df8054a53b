"""What every decoder returns, and the bounds that all of them keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.errors import ImageError

__all__ = ["MAX_PIXELS", "Decoded", "check_size"]

# the largest mammograms have 5928 x 4728 = 28 million, telephones' photographs 48; a picture of 50 takes 350 MB
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Decoded:
    """Pixels, and how they came to be.

    Attributes:
        pixels: uint8 (h, w) grey or (h, w, 3) RGB.
        notes: what was done to get them, in words.
        warnings: what the user should know before believing an answer about them.
        tags: what the file says of itself, names and values of the allow-list only; empty for rasters.
        n_frames: how many pictures the file holds; 1 where only the first is ever shown.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    n_frames: int = 1


def check_size(width: int, height: int, name: str) -> None:
    """Refuse a picture by the size its header states, before anything is decoded.

    Raises:
        ImageError: it has no pixels, or more than `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise ImageError(f"Expected at least one pixel, but {name} has {width} x {height}; export it again.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"Expected at most {MAX_PIXELS // 1_000_000} megapixels, but {name} has {width} x {height} = "
            f"{width * height / 1e6:.0f}; scale it down first."
        )
