"""uint8 RGB pixels to the vision encoder's float32 `pixel_values`, bit-identical to LLaVA and CLIPImageProcessor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.imaging.spec import CLIP_MEAN, CLIP_PAD_RGB, CLIP_STD, Preprocessing

__all__ = ["CLIP_MEAN", "CLIP_PAD_RGB", "CLIP_STD", "Preprocessing", "preprocess", "square"]


def square(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.uint8]:
    """Return the square that the encoder sees, before scaling to floats.

    Args:
        pixels: uint8 (h, w, 3), RGB.
        spec: The bundle's constants.

    Returns:
        uint8 (image_size_px, image_size_px, 3).

    Source: LLaVA `mm_utils.expand2square`, transformers `CLIPImageProcessor` (bicubic resize).
    """
    image = Image.fromarray(pixels)
    size = spec.image_size_px
    if spec.aspect == "pad":
        image = _pad(image, spec.pad_rgb).resize((size, size), Image.Resampling.BICUBIC)
    else:
        image = _crop(image, size)
    return np.asarray(image)


def preprocess(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """Return `pixel_values` for one image.

    Args:
        pixels: uint8 (h, w, 3), RGB.
        spec: The bundle's constants.

    Returns:
        float32 (1, 3, image_size_px, image_size_px), C-contiguous.

    Source: transformers `image_transforms.rescale` and `normalize`: the product with 1/255 in float64, rounded to
    float32, then mean and standard deviation in float32.
    """
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    # a table of 256 levels for 3 channels gives each pixel the same bits as the formula, for one look-up
    table = (levels - np.asarray(spec.mean, np.float32)[:, None]) / np.asarray(spec.std, np.float32)[:, None]
    seen = square(pixels, spec)
    return np.stack([table[channel][seen[..., channel]] for channel in range(3)])[None]


def _pad(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and cut the centre out, as CLIPImageProcessor does by default."""
    width, height = image.size
    short, long = sorted((width, height))
    longer = int(size * long / short)
    image = image.resize((size, longer) if width <= height else (longer, size), Image.Resampling.BICUBIC)
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
