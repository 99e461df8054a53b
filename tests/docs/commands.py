"""How each command that a document shows is tried; a command that no row knows fails the test."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fnmatch import fnmatchcase

from docs.documents import documents

__all__ = ["ROWS", "Row", "Way", "commands", "row_of"]


class Way(enum.Enum):
    """How a command is tried."""

    RUN = "as it is shown, in a folder that holds the files it names; it must end with exit code 0"
    CHAT = "as it is shown, with a question and /quit on standard input"
    SERVED = "a server is started with these options but a free port, and must become ready"
    CURL = "as it is shown, against that server"
    PULLED = "as it is shown, from a hub on this machine that has the demo checkpoint"
    PARSED = "the program parses the options and runs nothing"
    MADE = "make knows the target and all that it needs, and runs nothing"
    COLLECTED = "pytest finds tests under this path, marker and name"
    HELPED = "the script's --help has the options"
    INSTALLED = "the package, its version and its extras are those that pyproject.toml or the installed package names"
    REDRAWN = "into another folder, where each file must be equal to the committed one"
    WRITTEN = "the script exists, compiles, and has the options"
    VENV = "the Makefile makes this virtual environment"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        pattern: Shell pattern that the whole command matches; the first row that matches counts.
        way: How the command is tried.
        reason: Why it is not run as it is shown; empty where it is.
        more: Arguments that are added.
    """

    pattern: str
    way: Way
    reason: str = ""
    more: tuple[str, ...] = ()


ROWS = (
    Row("bimedix-edge ask --schema *", Way.RUN, "a drawn answer may be long", more=("--temperature", "0")),
    Row("bimedix-edge ask *", Way.RUN),
    Row("bimedix-edge chat --dry-run", Way.RUN),
    Row("bimedix-edge chat *", Way.CHAT),
    Row("bimedix-edge image *", Way.RUN),
    Row("bimedix-edge models *", Way.RUN),
    Row("bimedix-edge cache *", Way.RUN),
    Row("bimedix-edge doctor*", Way.RUN),
    Row("bimedix-edge convert *", Way.RUN),
    Row("bimedix-edge bench --model *", Way.RUN, more=("--rounds", "1", "--only", "decode 1 sequence")),
    Row("bimedix-edge bench*", Way.PARSED, "takes 5 GB and minutes; tests/cli/test_bench.py runs a small one"),
    Row("bimedix-edge serve", Way.SERVED, "port 8080 may be taken"),
    Row("bimedix-edge serve --host *", Way.PARSED, "needs an address of its own; tests/server/test_serve_command.py"),
    Row("bimedix-edge pull *", Way.PULLED, "downloads 16 GB"),
    Row("curl *", Way.CURL),
    Row("make *", Way.MADE, "what they run is the whole suite, or an installation"),
    Row("pytest *", Way.COLLECTED, "part of make test or make slow already"),
    Row("python -m pytest *", Way.COLLECTED, "part of make test already"),
    Row("python tests/docs/make_help.py", Way.RUN, "writes into the repository without it", more=("--check",)),
    Row("python -m models.demo.sample_pictures *", Way.REDRAWN, "writes into the repository"),
    Row("python tests/bench/bench_schema.py *", Way.RUN),
    Row("python tests/bench/*", Way.HELPED, "minutes and gigabytes"),
    Row("python3 tests/device/baseline.py *", Way.HELPED, "needs an NVIDIA card"),
    Row("python -m bimedix_edge.models.demo.evaluate *", Way.HELPED, "minutes; tests/test_accuracy.py asks fewer"),
    Row("python -m bimedix_edge.converters.synthetic.checkpoint *", Way.HELPED, "writes 16 GB"),
    Row("python -m models.demo.train *", Way.WRITTEN, "needs torch and an hour"),
    Row(".venv/bin/python tests/golden/make_golden.py", Way.WRITTEN, "needs torch"),
    Row("pip install *", Way.INSTALLED, "uses the network"),
    Row("CMAKE_ARGS=*", Way.INSTALLED, "compiles for minutes and needs a GPU's tools"),
    Row("$env:CMAKE_ARGS *", Way.INSTALLED, "is for Windows"),
    Row("openssl rand *", Way.RUN),
    Row("source .venv/bin/activate", Way.VENV, "changes the shell that runs it"),
)


def row_of(command: str) -> Row | None:
    """Return the row that knows a command."""
    return next((row for row in ROWS if fnmatchcase(command, row.pattern)), None)


def commands(*ways: Way) -> list[str]:
    """Return the commands of all documents that are tried in one of these ways, each once."""
    shown = dict.fromkeys(command for document in documents() for command in document.commands)
    rows = {command: row_of(command) for command in shown}
    return [command for command, row in rows.items() if row is not None and row.way in ways]
