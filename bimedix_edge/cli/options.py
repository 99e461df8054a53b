"""Options that several commands share, and options as one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

__all__ = ["Command", "encoder_options", "model_options", "pack", "placement_options", "sampling_options", "stack"]

Command = TypeVar("Command", bound=Callable[..., Any])


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options, which --help lists in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def pack(name: str, kind: type[Any]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command some of its options as one argument.

    Args:
        name: Name of the argument.
        kind: A dataclass. Its fields are the names of the options.
    """
    names = [field.name for field in fields(kind)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def packed(**arguments: Any) -> Any:
            value = kind(**{field: arguments.pop(field) for field in names})
            return command(**{name: value}, **arguments)

        untyped: Any = packed
        result: Command = untyped
        return result

    return decorate


def model_options(command: Command) -> Command:
    """Add --model, --ctx-size, --threads and --kernels."""
    return stack(
        click.option("-m", "--model", metavar="NAME|DIR", help="Name of an installed model, or directory of a bundle."),
        click.option(
            "--ctx-size", metavar="auto|N", help="Tokens of context, with images.  [default: 4096, or what fits]"
        ),
        click.option("--threads", type=int, metavar="N", help="Threads for matmuls.  [default: one per core]"),
        click.option("--kernels", metavar="NAME", help="auto, off, avx2, avxvnni, avx512vnni or amx.  [default: auto]"),
    )(command)


def placement_options(command: Command) -> Command:
    """Add the options that place layers, keys and values on GPUs."""
    return stack(
        click.option("--gpu-layers", metavar="auto|all|N", help="Layers on GPUs.  [default: auto, as many as fit]"),
        click.option("--device", metavar="NAME,...", help="GPUs to use; `doctor` lists them.  [default: all]"),
        click.option("--fit-target", type=int, metavar="MIB", help="Memory to keep free on each GPU.  [default: 1024]"),
        click.option("--kv-type", metavar="TYPE", help="KV cache: auto, f16, q8_0 or f32.  [default: auto]"),
        click.option("--kv-placement", metavar="WHERE", help="KV cache: auto, gpu or cpu.  [default: auto]"),
        click.option(
            "--allow-long-context",
            flag_value="on",
            help="Let --ctx-size be more than the model was trained with.",
        ),
    )(command)


def encoder_options(command: Command) -> Command:
    """Add --vision-device and --image-cache."""
    return stack(
        click.option(
            "--vision-device", metavar="NAME", help="Image encoder: auto, cpu, cuda or coreml.  [default: auto]"
        ),
        click.option(
            "--image-cache",
            metavar="SIZE|off",
            help="Keep image embeddings on the disk, up to SIZE such as 2G.  [default: off]",
        ),
    )(command)


def sampling_options(command: Command) -> Command:
    """Add the options of sampling."""
    return stack(
        click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: 0.1]"),
        click.option("--top-p", type=float, metavar="P", help="Keep the best tokens up to P.  [default: 1.0]"),
        click.option("--top-k", type=int, metavar="K", help="Keep the K best tokens; 0 keeps all.  [default: 0]"),
        click.option("--min-p", type=float, metavar="P", help="Drop tokens below P of the best.  [default: 0]"),
        click.option("--repeat-penalty", type=float, metavar="X", help="Against repetition; 1 is off.  [default: 1]"),
        click.option("--seed", type=int, metavar="N", help="Makes sampling repeatable.  [default: random]"),
        click.option("--max-tokens", type=int, metavar="N", help="Longest answer, in tokens.  [default: 1024]"),
    )(command)
