"""Writes the help texts of all commands into the command line's manual: `python tests/docs/make_help.py`.

With `--check`, nothing is written, and the exit code is 1 if the manual is not as it would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from bimedix_edge.cli.main import cli

MANUAL = Path(__file__).resolve().parents[2] / "bimedix_edge" / "cli" / "README.md"
HEADING = "## Help texts\n"
_WIDTH = 80


def help_texts() -> Iterator[tuple[str, str]]:
    """Yield each command as a user types it, and its help text at 80 columns."""
    yield from _texts(cli, None, "bimedix-edge")


def _texts(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(command, parent=parent, info_name=name.rpartition(" ")[2] if parent else name, **settings)
    yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from _texts(found, context, f"{name} {sub}")


def manual() -> str:
    """Return the manual as it should be: up to the help texts as it is, then these."""
    before = MANUAL.read_text(encoding="utf-8").partition(HEADING)[0]
    parts = [f"### {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in help_texts()]
    return "\n".join([before + HEADING, *parts])


def main() -> int:
    """Write the manual, or compare it."""
    if "--check" in sys.argv[1:]:
        return int(MANUAL.read_text(encoding="utf-8") != manual())
    MANUAL.write_text(manual(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
