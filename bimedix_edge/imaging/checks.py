"""What pixels themselves say against an answer about them: almost blank, tiny, photographed from a screen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["has_moire", "picture_warnings"]

_TINY_PX = 64
# a picture of which fewer pixels differ from the most common level shows nothing
_BLANK_SHARE = 0.005
_BLANK_LEVELS = 4
_SPECTRUM_PX = 512
# how far a peak stands out of its neighbourhood, in units of the median magnitude there
_PEAK = 40.0
_MIN_PEAKS = 2
_AXIS_BINS = 3


def picture_warnings(pixels: NDArray[np.uint8], *, raster: bool) -> list[str]:
    """Return what a user should know of a picture, in words.

    Args:
        pixels: uint8 (h, w) or (h, w, 3).
        raster: whether it may be a photograph of a screen; DICOM comes from the device itself.
    """
    height, width = pixels.shape[:2]
    warnings = []
    if min(height, width) < _TINY_PX:
        warnings.append(f"tiny: {width} x {height} pixels show the model little")
    if _is_blank(pixels):
        warnings.append("almost blank: nearly all pixels have the same value")
    if raster and has_moire(pixels):
        warnings.append("it looks like a photograph of a screen (a regular pattern lies over it); use the file itself")
    return warnings


def has_moire(pixels: NDArray[np.uint8]) -> bool:
    """Return whether a regular fine pattern lies slanted over a picture, as a camera sees the grid of a screen.

    Such a grid is a few sharp, isolated peaks in the spectrum, away from its axes, where upright structures, text and
    JPEG's blocks lie. A grid that the camera does not resolve, or that is parallel to the picture's sides, is missed;
    a woven or printed pattern in the scene is taken for a screen.

    Args:
        pixels: uint8 (h, w) or (h, w, 3); the middle 512 x 512 are looked at, unscaled.
    """
    height, width = pixels.shape[:2]
    side = min(height, width, _SPECTRUM_PX)
    if side < _TINY_PX * 2:
        return False
    top, left = (height - side) // 2, (width - side) // 2
    part = pixels[top : top + side, left : left + side].astype(np.float32)
    grey = part if part.ndim == 2 else part.mean(axis=2)
    taper = np.hanning(side).astype(np.float32)
    magnitude = np.abs(np.fft.rfft2((grey - grey.mean()) * taper[:, None] * taper))
    return _n_peaks(magnitude, side) >= _MIN_PEAKS


def _n_peaks(magnitude: NDArray[np.floating], side: int) -> int:
    """Count isolated peaks between a tenth and a half of a cycle per pixel, off the axes."""
    rows = np.fft.fftfreq(side)[:, None]
    columns = np.fft.rfftfreq(side)[None]
    radius = np.hypot(rows, columns)
    off_axis = (np.abs(rows) * side > _AXIS_BINS) & (np.abs(columns) * side > _AXIS_BINS)
    looked_at = off_axis & (radius > 0.1) & (radius < 0.5)
    count = 0
    for ring in range(10, 50, 4):  # what is usual changes with frequency, so each ring is judged by itself
        inside = looked_at & (radius * 100 >= ring) & (radius * 100 < ring + 4)
        values = magnitude[inside]
        if not values.size:
            continue
        usual = max(float(np.median(values)), 1.0)
        peaks = inside & (magnitude > _PEAK * usual)
        # edges and text make lines of many bins; a grid makes a peak of a few
        found = int(peaks.sum())
        count += 0 < found <= 24
    return count


def _is_blank(pixels: NDArray[np.uint8]) -> bool:
    grey = pixels if pixels.ndim == 2 else pixels[..., 1]
    counts = np.zeros(256, np.int64)
    for top in range(0, len(grey), 1024):
        counts += np.bincount(grey[top : top + 1024].reshape(-1), minlength=256)
    common = int(counts.argmax())
    alike = counts[max(common - _BLANK_LEVELS, 0) : common + _BLANK_LEVELS + 1].sum()
    return bool(alike >= (1 - _BLANK_SHARE) * grey.size)
