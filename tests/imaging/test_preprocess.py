"""pixel_values are bit-identical to LLaVA's: padding before the resize, the centre, the colours."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.imaging.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing, preprocess, square


def _image(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _reference(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """The obvious way: pad with numpy, resize, and the formula on every pixel."""
    height, width, _ = pixels.shape
    side = max(height, width)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = (122, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    resized = np.asarray(Image.fromarray(canvas).resize((size, size), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    normalised = (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return normalised.transpose(2, 0, 1)[None]


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 500), (500, 1), (336, 336), (335, 337), (640, 480), (481, 641), (17, 1000), (2001, 1999)]
)
def test_every_bit_equals_the_obvious_way(size: tuple[int, int]) -> None:
    pixels = _image(*size)
    values = preprocess(pixels, Preprocessing())
    assert values.dtype == np.float32
    assert values.shape == (1, 3, 336, 336)
    assert values.flags.c_contiguous
    assert np.array_equal(values, _reference(pixels, 336))


@pytest.mark.parametrize(("width", "height"), [(4, 7), (7, 4), (5, 8), (8, 5)])
def test_an_odd_margin_is_smaller_at_the_start(width: int, height: int) -> None:
    side = max(width, height)
    seen = square(_image(width, height), Preprocessing(image_size_px=side))
    padded = (seen == (122, 116, 104)).all(axis=2)
    start = (side - min(width, height)) // 2
    expected = np.zeros((side, side), bool)
    if width < height:
        expected[:, :start] = expected[:, start + width :] = True
    else:
        expected[:start] = expected[start + height :] = True
    assert np.array_equal(padded, expected)


def test_pad_keeps_the_sides_that_crop_cuts_off() -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, :20] = 255
    assert square(wide, Preprocessing(image_size_px=60)).max() == 255
    assert square(wide, Preprocessing(image_size_px=60, aspect="crop")).max() < 10


def test_what_was_seen_is_seen_again_unchanged() -> None:
    spec = Preprocessing()
    seen = square(_image(640, 480), spec)
    assert np.array_equal(square(seen, spec), seen)


def test_the_hash_covers_every_field() -> None:
    specs = [
        Preprocessing(),
        Preprocessing(image_size_px=224),
        Preprocessing(aspect="crop"),
        Preprocessing(pad_rgb=(0, 0, 0)),
        Preprocessing(mean=(0.5, 0.5, 0.5)),
        Preprocessing(std=(0.5, 0.5, 0.5)),
    ]
    assert len({spec.sha256 for spec in specs}) == len(specs)
