"""The options of `convert` that change the weights and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from bimedix_edge.cli.options import Command, pack, stack
from bimedix_edge.errors import UsageError

__all__ = ["WeightOptions", "weight_options"]


@dataclass(frozen=True)
class WeightOptions:
    """The values of these options."""

    lora: Path | None
    recipe: Path | None
    imatrix: Path | None
    calibrate: Path | None
    save_imatrix: Path | None
    zero_nonfinite: bool
    vision: Literal["auto", "int8", "int8_weights", "float16", "float32"]
    strict: bool

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: They do.
        """
        if self.imatrix is not None and self.calibrate is not None:
            raise UsageError("--imatrix and --calibrate exclude each other. Leave one out.")
        if self.save_imatrix is not None and self.calibrate is None:
            raise UsageError("--save-imatrix needs --calibrate with a text. Name one.")


def weight_options(command: Command) -> Command:
    """Add the options to a command, which gets them as one argument, `weights`."""
    path = click.Path(path_type=Path)
    return stack(
        click.option("--lora", type=path, metavar="DIR", help="Merge this LoRA adapter (PEFT)."),
        click.option("--recipe", type=path, metavar="FILE", help="TOML that gives some tensors another type."),
        click.option("--imatrix", type=path, metavar="FILE", help="llama.cpp's importance matrix."),
        click.option("--calibrate", type=path, metavar="TEXT", help="Measure an importance matrix on this text."),
        click.option("--save-imatrix", type=path, metavar="FILE", help="Keep what --calibrate measured."),
        click.option("--zero-nonfinite", is_flag=True, help="Write 0 for weights that are NaN or infinite."),
        click.option(
            "--vision",
            type=click.Choice(["auto", "int8", "int8_weights", "float16", "float32"]),
            default="auto",
            show_default=True,
            help="Weights of the image encoder; auto takes a type that CPUs compute fast; float16 is for GPUs.",
        ),
        click.option("--strict", is_flag=True, help="Refuse a result that lost more than its types should."),
    )(pack("weights", WeightOptions)(command))
