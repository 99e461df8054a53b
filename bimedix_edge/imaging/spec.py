"""The constants of preprocessing, apart from the code that uses them: reading a manifest needs no image library."""

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
        image_size_px: Side of the square that the encoder takes.
        aspect: How a picture becomes square: `pad` before the resize (LLaVA), or `crop` the centre after it
            (transformers' default).
        pad_rgb: Colour of the padding, 0 to 255.
        mean, std: Per channel, for an image scaled to 0..1.
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
