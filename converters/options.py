"""The options of a conversion, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.source.card import Card
from bimedix_edge.converters.source.config import Aspect
from bimedix_edge.converters.vision.weights import VisionChoice

__all__ = ["DEFAULTS", "ConvertOptions"]


@dataclass(frozen=True)
class ConvertOptions:
    """What a user can choose about a conversion.

    Attributes:
        file_type: Type of the decoder's file, a key of `quantize.FILE_TYPES` in any case.
        name: Name of the model; by default the card's name, or the checkpoint directory's.
        card: Licence, notice, prompt and source; by default the checkpoint's own card.toml, if it has one.
        bos: Number of BOS tokens at the start of a prompt, 1 or 2; overrides the card.
        aspect: How an image that is not square becomes square; overrides the card.
        vision_tower: CLIP checkpoint, for checkpoints that do not contain their tower.
        lora: LoRA adapter (PEFT directory) that is merged into the weights; see `lora`.
        recipe: TOML file that gives some tensors another type; see `recipe`.
        imatrix: Importance matrix of llama.cpp; see `imatrix`.
        zero_nonfinite: Whether NaN and infinite weights become 0, which the manifest then records. The converter
            refuses them otherwise.
        vision: Weights of the vision graph. `auto` tries int8, then 8-bit weights, then float32, and takes the first
            whose image tokens are close enough to those of the tower in float32.
        pictures: Images on which the vision graph is judged, uint8 (h, w, 3) each; drawn ones by default.
        strict: Whether to refuse a result that lost more than its types should; see `quality.LIMITS`.
        replace: Whether an existing target is replaced.
        fresh: Whether to start over instead of resuming an interrupted conversion.
    """

    file_type: str = "Q4_K_M"
    name: str | None = None
    card: Card | Path | None = None
    bos: int | None = None
    aspect: Aspect | None = None
    vision_tower: Path | None = None
    lora: Path | None = None
    recipe: Path | None = None
    imatrix: Path | None = None
    zero_nonfinite: bool = False
    vision: VisionChoice = "float32"
    pictures: Sequence[NDArray[np.uint8]] = ()
    strict: bool = False
    replace: bool = False
    fresh: bool = False

    @property
    def decoder_files(self) -> dict[str, Path]:
        """Return the files that the decoder's bytes depend on, besides the checkpoint's and the adapter's."""
        named = {"recipe": self.recipe, "imatrix": self.imatrix}
        return {name: path for name, path in named.items() if path is not None}


DEFAULTS = ConvertOptions()
