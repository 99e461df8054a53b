"""Stored grey values to 8 bits: modality transformation, then window or look-up table, then black to white.

Every step is a function of one value. So 8- and 16-bit pictures go through a table of all possible values, which is
computed in float64 once and costs one look-up per pixel. Larger types are computed band by band.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.imaging.window import LINEAR, SIGMOID, Window

__all__ = ["Display", "Lut", "Range", "Rescale", "render", "value_range"]

Values = NDArray[Any]
Floats = NDArray[np.float64]

_BAND = 1 << 20
# a value halfway between two levels goes up, in whatever order the arithmetic is done
_TIE = 1e-7


@dataclass(frozen=True)
class Rescale:
    """Values times `slope` plus `intercept`. Source: DICOM PS3.3 C.11.1."""

    slope: float
    intercept: float

    def apply(self, values: Floats) -> Floats:
        """Return the rescaled values."""
        return values * self.slope + self.intercept


@dataclass(frozen=True)
class Lut:
    """A look-up table. Source: DICOM PS3.3 C.11.1.1 and C.11.2.1.1.

    Attributes:
        first: The value that the first entry stands for; smaller values get that entry, too.
        bits: Bits per entry, which runs from 0 to 2**bits - 1.
        entries: float64 (n,).
    """

    first: int
    bits: int
    entries: Floats

    def apply(self, values: Floats) -> Floats:
        """Return the entries of `values`; values beyond the ends get the first or last one."""
        index = np.clip(values - self.first, 0, len(self.entries) - 1).astype(np.intp)
        found: Floats = self.entries[index]
        return found

    def shares(self, values: Floats) -> Floats:
        """Return the entries of `values` as shares of the largest possible entry, 0 to 1."""
        shares: Floats = self.apply(values) / (2**self.bits - 1)
        return shares


@dataclass(frozen=True)
class Range:
    """All values from `low` (black) to `high` (white)."""

    low: float
    high: float

    def shares(self, values: Floats) -> Floats:
        """Return where `values` lie between the ends, 0 to 1; 0 (black) if both ends are equal."""
        span = self.high - self.low
        return np.clip((values - self.low) / span, 0, 1) if span > 0 else np.zeros_like(values)


@dataclass(frozen=True)
class Display:
    """How stored values become grey.

    Attributes:
        modality: Transformation to the units of the modality, such as Hounsfield; None leaves the values as they are.
        voi: The part of those values that is shown from black to white.
        inverted: Whether the lowest value is white (MONOCHROME1).
    """

    modality: Rescale | Lut | None
    voi: Window | Lut | Range
    inverted: bool = False

    def levels(self, stored: Values) -> NDArray[np.uint8]:
        """Return uint8 levels of stored values of any shape."""
        values = _in_units(stored, self.modality)
        shares = window_shares(values, self.voi) if isinstance(self.voi, Window) else self.voi.shares(values)
        # NaN is shown black
        levels = np.floor(np.nan_to_num(shares, nan=0.0) * 255 + (0.5 + _TIE)).astype(np.uint8)
        return 255 - levels if self.inverted else levels


def window_shares(values: Floats, window: Window) -> Floats:
    """Return `values` through a window, 0 (black) to 1 (white).

    Source: DICOM PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT).
    """
    center, width = window.center, window.width
    if window.function == SIGMOID:
        with np.errstate(over="ignore"):  # exp overflows to infinity where the share is 0
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if window.function == LINEAR:
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def render(stored: Values, display: Display) -> NDArray[np.uint8]:
    """Return uint8 levels of a picture.

    Args:
        stored: (h, w) of any integer or float type.
        display: The steps from values to levels.
    """
    levels = np.empty(stored.shape, np.uint8)
    flat = levels.reshape(-1)
    table = display.levels(_all_values(stored.dtype)) if _has_table(stored) else None
    for start, band in _bands(stored):
        flat[start : start + band.size] = display.levels(band) if table is None else table[_indices(band)]
    return levels


def value_range(
    stored: Values, modality: Rescale | Lut | None, padding: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Return the lowest and the highest value in the units of the modality, or None if no value counts.

    Args:
        stored: (h, w).
        modality: The transformation from stored values.
        padding: First and last stored value that mean padding, which does not count.
    """
    if _has_table(stored):
        n_values = 1 << (8 * stored.dtype.itemsize)
        counts = np.zeros(n_values, np.int64)
        for _, band in _bands(stored):
            counts += np.bincount(_indices(band), minlength=n_values)
        return _ends(_all_values(stored.dtype)[counts > 0], modality, padding)
    ends = [found for _, band in _bands(stored) if (found := _ends(band, modality, padding))]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _ends(
    values: Values, modality: Rescale | Lut | None, padding: tuple[float, float] | None
) -> tuple[float, float] | None:
    if padding is not None:
        values = values[(values < padding[0]) | (values > padding[1])]
    converted = _in_units(values, modality)
    converted = converted[np.isfinite(converted)]
    return (float(converted.min()), float(converted.max())) if converted.size else None


def _in_units(stored: Values, modality: Rescale | Lut | None) -> Floats:
    values = stored.astype(np.float64)
    return values if modality is None else modality.apply(values)


def _has_table(stored: Values) -> bool:
    return stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2


def _all_values(dtype: np.dtype[Any]) -> Values:
    """Return every value of an 8- or 16-bit type, ordered by its bits as an unsigned number."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    bits = np.arange(1 << (8 * dtype.itemsize), dtype=np.uint32).astype(unsigned)
    return bits.view(np.dtype(dtype.kind + str(dtype.itemsize)))


def _indices(stored: Values) -> Values:
    native = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    return native.view(np.dtype(f"u{stored.dtype.itemsize}"))


def _bands(stored: Values) -> Iterator[tuple[int, Values]]:
    flat = stored.reshape(-1)
    for start in range(0, flat.size, _BAND):
        yield start, flat[start : start + _BAND]
