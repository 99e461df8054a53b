"""Options that several commands share, and the settings they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["encoder_options", "model_options", "placement_options", "sampling_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def _stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_options(command: Command) -> Command:
    """Add --model, --ctx-size, --threads and --kernels."""
    return _stack(
        click.option("-m", "--model", metavar="NAME|DIR", help="An installed model's name, or a bundle's directory."),
        click.option(
            "--ctx-size", metavar="auto|N", help="Tokens of context, images included.  [default: 4096, or what fits]"
        ),
        click.option("--threads", type=int, metavar="N", help="Threads of the matmuls.  [default: one a core]"),
        click.option("--kernels", metavar="NAME", help="auto, off, avx2, avxvnni, avx512vnni or amx.  [default: auto]"),
    )(command)


def placement_options(command: Command) -> Command:
    """Add what decides what goes to a GPU, and how the context is stored."""
    return _stack(
        click.option("--gpu-layers", metavar="auto|all|N", help="Layers that a GPU takes.  [default: auto, what fits]"),
        click.option(
            "--device", metavar="NAME,...", help="GPUs that may be used; `doctor` lists them.  [default: all]"
        ),
        click.option("--fit-target", type=int, metavar="MIB", help="Memory kept free on each GPU.  [default: 1024]"),
        click.option("--kv-type", metavar="TYPE", help="Of the context: auto, f16, q8_0 or f32.  [default: auto]"),
        click.option("--kv-placement", metavar="WHERE", help="Of the context: auto, gpu or cpu.  [default: auto]"),
        click.option(
            "--allow-long-context",
            flag_value="on",
            help="Let --ctx-size be more than the model was trained with.",
        ),
    )(command)


def encoder_options(command: Command) -> Command:
    """Add --vision-device and --image-cache."""
    return _stack(
        click.option("--vision-device", metavar="NAME", help="For images: auto, cpu, cuda or coreml.  [default: auto]"),
        click.option(
            "--image-cache",
            metavar="SIZE|off",
            help="Keep what was computed about images on the disk, up to SIZE such as 2G.  [default: off]",
        ),
    )(command)


def sampling_options(command: Command) -> Command:
    """Add what decides how an answer is written."""
    return _stack(
        click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: 0.1]"),
        click.option("--top-p", type=float, metavar="P", help="Keep the best tokens up to P.  [default: 1.0]"),
        click.option("--top-k", type=int, metavar="K", help="Keep the K best tokens; 0 keeps all.  [default: 0]"),
        click.option("--min-p", type=float, metavar="P", help="Drop tokens below P of the best.  [default: 0]"),
        click.option("--repeat-penalty", type=float, metavar="X", help="Against repetition; 1 is none.  [default: 1]"),
        click.option("--seed", type=int, metavar="N", help="Makes sampling repeatable.  [default: a new one]"),
        click.option("--max-tokens", type=int, metavar="N", help="Most tokens of an answer.  [default: 1024]"),
    )(command)
