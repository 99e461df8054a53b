"""The options of `convert` that change what the weights become, and how they are judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from bimedix_edge.errors import UsageError

__all__ = ["WeightOptions", "weight_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class WeightOptions:
    """What the user said with these options."""

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
            UsageError: they do.
        """
        if self.imatrix is not None and self.calibrate is not None:
            raise UsageError("Expected --imatrix or --calibrate, but both are given; leave one out.")
        if self.save_imatrix is not None and self.calibrate is None:
            raise UsageError("Expected --calibrate with --save-imatrix, but there is no text; name one.")


def weight_options(command: _Command) -> _Command:
    """Add the options to a command, which gets them as one argument, `weights`."""
    names = [field.name for field in fields(WeightOptions)]

    @functools.wraps(command)
    def packed(**arguments: Any) -> Any:
        options = WeightOptions(**{name: arguments.pop(name) for name in names})
        return command(weights=options, **arguments)

    path = click.Path(path_type=Path)
    decorated: Any = packed
    for option in reversed(
        [
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
                help="Weights of the vision encoder; auto takes what a CPU computes fast; float16 is for GPUs.",
            ),
            click.option("--strict", is_flag=True, help="Refuse a result that lost more than its types should."),
        ]
    ):
        decorated = option(decorated)
    result: _Command = decorated
    return result
