"""Each transfer syntax, depth, sign and window gives exactly the grey of a float64 reference by the standard."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pydicom
import pytest
from imaging.phantoms import LOSSY, SYNTAXES, dataset, stored_values, written
from numpy.typing import NDArray

from bimedix_edge.imaging.picture import load_picture

# center and width as shares of the range of values, and the function; None is no window in the file
WINDOWS: list[tuple[float, float, str] | None] = [
    None,
    (0.5, 1.0, "LINEAR"),
    (0.3, 0.21, "LINEAR"),
    (0.6, 0.4, "LINEAR_EXACT"),
    (0.5, 0.3, "SIGMOID"),
]
RESCALES: list[tuple[float, float] | None] = [None, (1.0, -1024.0), (0.37, 11.5), (-2.0, 5.0)]
Case = tuple[str, str, bool, int, tuple[float, float, str] | None, tuple[float, float] | None]


def _possible(syntax: str, *, signed: bool, bits: int) -> bool:
    if syntax == "JPEG baseline":
        return bits == 8 and not signed
    # lossy coding of the sign bit changes values
    return not (syntax == "JPEG-LS near-lossless" and signed)


CASES: list[Case] = [
    case
    for case in itertools.product(
        SYNTAXES, ("MONOCHROME1", "MONOCHROME2"), (False, True), (8, 12, 16), WINDOWS, RESCALES
    )
    if _possible(case[0], signed=case[2], bits=case[3])
]


def _reference(
    stored: NDArray[Any], bits: int, window: tuple[float, float, str] | None, rescale: Any, *, inverted: bool
) -> NDArray[np.uint8]:
    """PS3.3 C.11.1 and C.11.2, value by value in float64, without a table."""
    x = stored.astype(np.float64)
    if rescale is not None:
        x = x * rescale[0] + rescale[1]
    if window is None:
        low, high = x.min(), x.max()
        if rescale is None and bits == 8:
            low = -128.0 if stored.dtype.kind == "i" else 0.0
            high = low + 255
        y = (x - low) / (high - low)
    else:
        c, w, function = window
        if function == "SIGMOID":
            y = 1 / (1 + np.exp(-4 * (x - c) / w))
        else:
            if function == "LINEAR":
                c, w = c - 0.5, w - 1
            y = (x - c) / w + 0.5
            y[x <= c - w / 2] = 0
            y[x > c + w / 2] = 1
    levels = np.floor(y * 255 + 0.5 + 1e-7)
    return (255 - levels if inverted else levels).astype(np.uint8)


def differing_pixels(case: Case) -> int:
    syntax, photometric, signed, bits, share, rescale = case
    values = stored_values(bits, signed=signed)
    attributes: dict[str, Any] = {}
    if rescale is not None:
        attributes |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
    window = None
    if share is not None:
        ends = values.astype(np.float64) * (rescale[0] if rescale else 1) + (rescale[1] if rescale else 0)
        span = float(ends.max() - ends.min())
        window = (round(float(ends.min()) + share[0] * span, 3), round(max(share[1] * span, 2), 3), share[2])
        attributes |= {"WindowCenter": window[0], "WindowWidth": window[1], "VOILUTFunction": window[2]}
    data = written(dataset(values, bits, photometric=photometric, **attributes), syntax)
    if syntax in LOSSY:  # by another decoder
        values = pydicom.dcmread(io.BytesIO(data)).pixel_array
    picture = load_picture(data)
    expected = _reference(values, bits, window, rescale, inverted=photometric == "MONOCHROME1")
    assert picture.pixels.shape == (*values.shape, 3)
    return int((picture.pixels != expected[..., None]).sum())


def _sample() -> list[Case]:
    """Every syntax, and every 61st of the rest."""
    first = {case[0]: case for case in CASES if case[3] == 12 or case[0] == "JPEG baseline"}
    return [*first.values(), *CASES[::61]]


@pytest.mark.parametrize("case", _sample(), ids=str)
def test_every_pixel_equals_the_reference(case: Case) -> None:
    assert differing_pixels(case) == 0


@pytest.mark.slow
def test_every_pixel_of_every_phantom_equals_the_reference() -> None:
    wrong = {case: count for case in CASES if (count := differing_pixels(case))}
    print(f"\n{len(CASES)} phantoms in {len(SYNTAXES)} transfer syntaxes, {len(wrong)} with differing pixels")
    assert not wrong
