"""The entry point: the group of commands, and the place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys

import click

from bimedix_edge.cli.text import one_line
from bimedix_edge.errors import BimedixEdgeError

__all__ = ["cli", "main"]

_COMMANDS = {
    "ask": "Answer one question, with or without images.",
    "bench": "Measure the speed of this machine.",
    "cache": "Show or erase the image embeddings on the disk.",
    "chat": "Talk with the model in the terminal.",
    "convert": "Turn a published checkpoint into a bundle.",
    "doctor": "Check this machine, and whether chat would run.",
    "image": "Show what the model sees of a picture, and the steps to it.",
    "models": "List, show, verify and remove installed models.",
    "pull": "Fetch a published checkpoint and convert it.",
    "serve": "Serve OpenAI clients and a web page on this machine.",
}
_EXIT_INTERRUPTED = 130

EPILOG = """\
Exit codes: 0 done, 1 a defect of this program, 2 wrong usage, 3 bad input, 4 a model that cannot be used, 5 memory,
disk space or a device is missing, 6 the network or the hub failed, 130 interrupted.

A research model, not for clinical use. BiMediX2 weights are licensed CC BY-NC-SA 4.0.
"""


class _LazyGroup(click.Group):
    """A group that imports a command only when it runs, so that --help does not load the engines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"bimedix_edge.cli.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bimedix-edge")
def cli() -> None:
    """Run BiMediX2, a bilingual (Arabic-English) medical vision-language model, offline on this machine."""


def main() -> None:
    """Run the command line and exit with a documented code."""
    for stream in (sys.stdout, sys.stderr):
        # Arabic must reach a pipe in any locale
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BimedixEdgeError as error:
        click.echo(f"bimedix-edge: {one_line(str(error))}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("bimedix-edge: interrupted", err=True)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output is gone; keep Python from flushing the rest at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        click.echo("bimedix-edge: The memory ran out. Close other programs.", err=True)
        return 5


if __name__ == "__main__":
    main()
