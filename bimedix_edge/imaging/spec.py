"""The constants of preprocessing, apart from what computes with them: a manifest is read where no image ever is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from msgspec import Meta

__all__ = ["CLIP_MEAN", "CLIP_PAD_RGB", "CLIP_STD", "Preprocessing"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_PAD_RGB = (122, 116, 104)

Level = Annotated[int, Meta(ge=0, le=255)]
Mean = Annotated[float, Meta(ge=0, le=1)]
Deviation = Annotated[float, Meta(gt=0, le=1)]


@dataclass(frozen=True)
class Preprocessing:
    """The constants of a bundle's image preprocessing.

    Attributes:
        image_size_px: side of the square the encoder takes.
        aspect: `pad` to a square before the resize (LLaVA), or `crop` the centre after it (transformers' default).
        pad_rgb: the colour of the padding, 0 to 255.
        mean, std: per channel, in units of the image scaled to 0..1.
    """

    image_size_px: Annotated[int, Meta(ge=1, le=4096)] = 336
    aspect: Literal["pad", "crop"] = "pad"
    pad_rgb: tuple[Level, Level, Level] = CLIP_PAD_RGB
    mean: tuple[Mean, Mean, Mean] = CLIP_MEAN
    std: tuple[Deviation, Deviation, Deviation] = CLIP_STD

    @property
    def sha256(self) -> str:
        """Return a hash of every field, part of the key under which embeddings are reused."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
