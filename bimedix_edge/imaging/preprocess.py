"""uint8 RGB pixels to the vision encoder's float32 `pixel_values`, bit for bit as LLaVA and CLIPImageProcessor do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CLIP_MEAN", "CLIP_PAD_RGB", "CLIP_STD", "Preprocessing", "preprocess", "square"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_PAD_RGB = (122, 116, 104)


@dataclass(frozen=True)
class Preprocessing:
    """The constants of a bundle's image preprocessing.

    Attributes:
        image_size_px: side of the square the encoder takes.
        aspect: `pad` to a square before the resize (LLaVA), or `crop` the centre after it (transformers' default).
        pad_rgb: the colour of the padding, 0 to 255.
        mean, std: per channel, in units of the image scaled to 0..1.
    """

    image_size_px: int = 336
    aspect: Literal["pad", "crop"] = "pad"
    pad_rgb: tuple[int, int, int] = CLIP_PAD_RGB
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def sha256(self) -> str:
        """Return a hash of every field, part of the key under which embeddings are reused."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def square(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.uint8]:
    """Return what the encoder sees, before scaling to floats.

    Args:
        pixels: uint8 (h, w, 3), RGB.
        spec: the bundle's constants.

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
        spec: the bundle's constants.

    Returns:
        float32 (1, 3, image_size_px, image_size_px), C-contiguous.

    Source: transformers `image_transforms.rescale` and `normalize`: the product with 1/255 in float64, rounded to
    float32, then the mean and the deviation in float32.
    """
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    # 256 levels and 3 channels: a table gives every pixel the same bits as the formula, at the price of a look-up
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
