"""What a user can add to a checkpoint: a LoRA adapter, a recipe, an importance matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.converters.decoder.gguf import PlannedTensor, plan_decoder
from bimedix_edge.converters.decoder.imatrix import read_imatrix, with_importance
from bimedix_edge.converters.decoder.quantize import FileType
from bimedix_edge.converters.decoder.recipe import apply_recipe, read_recipe
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.config import Aspect

__all__ = ["Additions"]


@dataclass(frozen=True)
class Additions:
    """Files and choices that change what the weights become.

    Attributes:
        lora: a PEFT directory, merged into the weights.
        recipe: a TOML file that gives some tensors another type.
        imatrix: an importance matrix of llama.cpp.
        zero_nonfinite: whether weights that are NaN or infinite become 0; otherwise they are refused.
    """

    lora: Path | None = None
    recipe: Path | None = None
    imatrix: Path | None = None
    zero_nonfinite: bool = False

    def open(self, directory: Path, tower: Path | None, aspect: Aspect | None) -> Checkpoint:
        """Open a checkpoint with the adapter in it.

        Raises:
            CheckpointError: see `Checkpoint` and `lora.read_adapter`.
        """
        return Checkpoint(
            directory,
            tower_directory=tower,
            aspect=aspect,
            adapter_directory=self.lora,
            zero_nonfinite=self.zero_nonfinite,
        )

    def plan(self, checkpoint: Checkpoint, file_type: FileType) -> list[PlannedTensor]:
        """Declare the decoder's tensors with the recipe's types and the importance of their columns.

        Raises:
            UsageError: the recipe cannot be used.
            InputError: the importance matrix cannot be used.
        """
        planned = plan_decoder(checkpoint, file_type, has_imatrix=self.imatrix is not None)
        if self.recipe is not None:
            planned = apply_recipe(planned, read_recipe(self.recipe))
        return planned if self.imatrix is None else with_importance(planned, read_imatrix(self.imatrix))

    @property
    def files(self) -> dict[str, Path]:
        """Return the files that the decoder's bytes depend on beside the checkpoint's and the adapter's."""
        named = {"recipe": self.recipe, "imatrix": self.imatrix}
        return {name: path for name, path in named.items() if path is not None}
