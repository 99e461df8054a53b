"""The documents as data: their fenced blocks, their code spans, their links, and the commands that they show."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bimedix_edge.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bimedix_edge", "converters", "kernels", "models", "tests")
# a block in another language is refused, so that no command hides in it
LANGUAGES = {"console", "sh", "python", "toml", "text"}
# a code span that begins with one of these, and says more, is a command
PROGRAMS = {"bimedix-edge", "curl", "make", "openssl", "pip", "pytest", "python", "python3", "source"}
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line on which it begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Session:
    """A command of a terminal session, and the lines that it prints."""

    command: str
    output: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A Markdown file.

    Attributes:
        path: Absolute path.
        lines: Its lines; those of blocks are empty in `prose`.
        blocks: Its fenced blocks.
    """

    path: Path
    lines: tuple[str, ...]
    prose: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def spans(self) -> list[str]:
        """Return the code spans, with single blanks where a line ends inside of one."""
        paragraphs = "\n".join(self.prose).split("\n\n")
        return [" ".join(span.split()) for paragraph in paragraphs for span in _SPAN.findall(paragraph)]

    @property
    def links(self) -> list[str]:
        return [link for line in self.prose for link in _LINK.findall(_SPAN.sub("", line))]

    @property
    def anchors(self) -> set[str]:
        """Return the names that the headings have as link targets."""
        titles = [line.lstrip("#").strip() for line in self.prose if re.match(r"#{1,6} ", line)]
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    @property
    def commands(self) -> list[str]:
        """Return all commands in order, without comments, prompts and line breaks."""
        shown = [command for block in self.blocks if block.language == "sh" for command in _commands(block.text)]
        shown += [session.command for session in self.sessions]
        return shown + [span for span in self.spans if is_command(span)]

    @property
    def sessions(self) -> list[Session]:
        found: list[Session] = []
        for block in self.blocks:
            for line in block.text.splitlines() if block.language == "console" else ():
                if line.startswith("$ "):
                    found.append(Session(line[2:]))
                else:
                    found[-1].output.append(line)
        return found


def is_command(span: str) -> bool:
    """Return whether a code span is a command rather than the name of one."""
    first, _, rest = span.partition(" ")
    program = first.rpartition("/")[2] if first.startswith(".venv/") else first
    return bool(rest) and (program in PROGRAMS or first.startswith(("CMAKE_ARGS=", "$env:")))


def is_mention(span: str) -> bool:
    """Return whether a code span names a command of ours with options, or a subcommand, but without the program."""
    first, _, rest = span.partition(" ")
    return bool(rest) and first in cli.list_commands(None)  # type: ignore[arg-type]  # the group needs no context


@functools.cache
def documents() -> tuple[Document, ...]:
    """Return every document of the repository."""
    paths = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    return tuple(_read(path) for path in sorted(paths))


def table_rows(path: Path, first_column: str) -> dict[str, list[str]]:
    """Return the rows of a document's table whose first heading is this, by their first cell without backquotes."""
    lines = path.read_text(encoding="utf-8").partition(f"\n| {first_column} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def _read(path: Path) -> Document:
    lines = path.read_text(encoding="utf-8").splitlines()
    prose, blocks, begun = [], [], None
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if begun is not None and line == "```":
            language, first = begun
            blocks.append(Block(language, "\n".join(lines[first : number - 1]), first))
            begun = None
        elif fence is not None and begun is None:
            begun = (fence[1], number)
        else:
            prose.append("" if begun is not None else line)
            continue
        prose.append("")
    assert begun is None, f"{path}: a block does not end"
    return Document(path, tuple(lines), tuple(prose), tuple(blocks))


def _commands(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            # as written, since quotes matter to a shell: all up to the comment, if there is one
            yield " ".join(re.sub(r"\s+#\s.*$", "", line).split())
