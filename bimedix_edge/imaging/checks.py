"""Warnings that pixels themselves give: almost blank, tiny, photographed from a screen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.imaging.notes import Note, note

__all__ = ["has_moire", "picture_warnings"]

_TINY_PX = 64
# a picture is blank if fewer of its pixels than this differ from the most common level
_BLANK_SHARE = 0.005
_BLANK_LEVELS = 4
_SPECTRUM_PX = 512
# a peak is at least this many times the median magnitude around it
_PEAK = 40.0
_MIN_PEAKS = 2
_AXIS_BINS = 3


def picture_warnings(pixels: NDArray[np.uint8], *, raster: bool) -> list[Note]:
    """Return the warnings that the pixels of a picture give.

    Args:
        pixels: uint8 (h, w) or (h, w, 3).
        raster: Whether it may be a photograph of a screen; DICOM comes from the device itself.
    """
    height, width = pixels.shape[:2]
    warnings = []
    if min(height, width) < _TINY_PX:
        warnings.append(note("tiny", width=width, height=height))
    if _is_blank(pixels):
        warnings.append(note("almost_blank"))
    if raster and has_moire(pixels):
        warnings.append(note("photographed_screen"))
    return warnings


def has_moire(pixels: NDArray[np.uint8]) -> bool:
    """Return whether a fine regular grid lies slanted over a picture, as in a photograph of a screen.

    Such a grid makes a few sharp, isolated peaks in the spectrum. They lie off its axes, where upright structures, text
    and JPEG's blocks do not. The test misses a grid that the camera does not resolve or that is parallel to the
    picture's sides, and takes a woven or printed pattern in the scene for a screen.

    Args:
        pixels: uint8 (h, w) or (h, w, 3); only the middle 512 x 512 count, unscaled.
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
    examined = off_axis & (radius > 0.1) & (radius < 0.5)
    count = 0
    for ring in range(10, 50, 4):  # usual magnitudes fall with frequency, so each ring has its own threshold
        inside = examined & (radius * 100 >= ring) & (radius * 100 < ring + 4)
        values = magnitude[inside]
        if not values.size:
            continue
        usual = max(float(np.median(values)), 1.0)
        peaks = inside & (magnitude > _PEAK * usual)
        # edges and text make lines of many bins, a grid peaks of a few
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
