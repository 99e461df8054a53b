"""`bimedix-edge chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from bimedix_edge.chat import Chat
from bimedix_edge.cli.language import language_of, locale_language
from bimedix_edge.cli.opening import open_runtime
from bimedix_edge.cli.options import encoder_options, model_options, placement_options, sampling_options
from bimedix_edge.cli.pictures import Selection, load_all, picture_options, show_pictures
from bimedix_edge.cli.plan_report import show_dry_run
from bimedix_edge.cli.terminal import (
    AnswerPrinter,
    ProgressLine,
    cancel_on_interrupt,
    echo,
    plain_console,
    reorders,
    timing_line,
)
from bimedix_edge.cli.text import one_line
from bimedix_edge.errors import BimedixEdgeError, DeviceError, UsageError
from bimedix_edge.events import Cancel, Done, Event, Token
from bimedix_edge.imaging.picture import Picture
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.runtime import Runtime
from bimedix_edge.settings import Settings, load_settings
from bimedix_edge.staging import write_file

__all__ = ["chat"]

HELP = """\
Type a question and press Enter; ask in English or in Arabic.
  /image FILE [WINDOW] [FRAME]
                add an image to the next question; a DICOM file may have a window
                and a frame: /image ct.dcm lung, /image ct.dcm 40/400 3
  /regen        answer the last question again
  /clear        forget this conversation
  /save FILE    write the conversation (.json, or text otherwise)
  /help         show this
  /quit         leave; so does Ctrl-D
Ctrl-C stops an answer."""


@click.command()
@click.option("-i", "--image", "images", multiple=True, type=click.Path(), metavar="FILE", help="For question 1.")
@picture_options
@model_options
@placement_options
@encoder_options
@sampling_options
@click.option("--bidi", type=click.Choice(["auto", "on", "off"]), help="Reorder Arabic for this terminal.")
@click.option("-v", "--verbose", is_flag=True, help="Print timings after each answer.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the memory it takes; load nothing.")
def chat(images: tuple[str, ...], selection: Selection, verbose: bool, dry_run: bool, **flags: Any) -> None:
    """Talk with the model in the terminal.

    Notes and warnings are in the language of the last question, English or Arabic; before the first, in Arabic if the
    locale is.
    """
    settings = load_settings(flags)
    console = plain_console(stderr=True)
    language = locale_language()
    if dry_run:
        show_dry_run(settings, console, language=language)
        return
    pictures = load_all(images, selection)
    with open_runtime(settings, console, language=language) as runtime, runtime.chat() as conversation:
        echo(f"{runtime.manifest.name} · {runtime.manifest.notice}")
        echo("Type a question, /image FILE to add an image, /help for more.")
        show_pictures(pictures, settings, err=False, language=language)
        _Terminal(runtime, conversation, settings, pictures, verbose=verbose).run()


class _Terminal:
    """Reads lines and acts on them until the user leaves."""

    def __init__(
        self, runtime: Runtime, conversation: Chat, settings: Settings, pictures: list[Picture], *, verbose: bool
    ) -> None:
        self._runtime = runtime
        self._chat = conversation
        self._settings = settings
        self._language = locale_language()
        self._printer = AnswerPrinter(sys.stdout, reorder=reorders(settings, sys.stdout))
        self._pending = pictures
        self._verbose = verbose
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/regen": self._regenerate,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: click.echo(HELP),
        }

    def run(self) -> None:
        with _line_editing(list(self._commands)):
            while (line := self._read()) is not None:
                try:
                    self._act(line)
                except BimedixEdgeError as error:
                    # a wrong command must not end the conversation
                    echo(one_line(str(error)), err=True)
                except (KeyboardInterrupt, click.Abort):
                    # Ctrl-C while a picture is read or a series is chosen stops that, not the conversation
                    click.echo("(stopped)")

    def _read(self) -> str | None:
        """Return the next line, or None at the end of the input or when the user leaves."""
        interactive = sys.stdin.isatty()
        marker = f"[{len(self._pending)} image{'s' * (len(self._pending) > 1)}] " if self._pending else ""
        while True:
            try:
                line = input(f"{marker}> ") if interactive else _piped_line()
            except EOFError:
                if interactive:
                    click.echo()
                return None
            except KeyboardInterrupt:
                click.echo("\n(/quit or Ctrl-D leaves)")
                continue
            if line.strip() == "/quit":
                return None
            if line.strip():
                return line

    def _act(self, line: str) -> None:
        name, _, argument = line.strip().partition(" ")
        if name in self._commands:
            self._commands[name](argument.strip())
        elif name.startswith("/") and "/" not in name[1:]:
            raise UsageError(f"There is no command {name}. /help lists the commands.")
        else:
            pictures = tuple(self._pending)
            self._language = language_of(line)
            if self._stream(lambda cancel: self._chat.ask(line, pictures, cancel=cancel)):
                self._pending = []

    def _stream(self, start: Callable[[Cancel], Iterator[Event]]) -> bool:
        """Show an answer; return whether it became part of the conversation."""
        progress = ProgressLine(sys.stderr)
        before = self._chat.turns
        with cancel_on_interrupt() as cancel:
            try:
                for event in start(cancel):
                    progress.show(event)
                    if isinstance(event, Token):
                        self._printer.write(event.text)
                    elif isinstance(event, Done):
                        self._end(event)
            except DeviceError as error:
                self._interrupted(error)
            finally:
                progress.clear()
        return self._chat.turns != before

    def _interrupted(self, error: DeviceError) -> None:
        """Report that a device failed, and continue without it if the user agrees."""
        self._printer.finish()
        echo("(interrupted; /regen answers again)")
        echo(str(error), err=True)
        question = "Load the model again on the CPU alone? It answers more slowly."
        if sys.stdin.isatty() and click.confirm(question, err=True):
            self._runtime.leave_gpu(self._chat)
            echo(self._runtime.plan.line, err=True)

    def _end(self, done: Done) -> None:
        remark = {
            "end": "",
            "max_tokens": "(cut at --max-tokens)",
            "context": "(cut: the context is full; /clear starts a new conversation)",
            "cancelled": "(stopped)",
        }[done.stop_reason]
        self._printer.finish()
        if remark:
            echo(remark)
        if self._verbose:
            echo(timing_line(done), err=True)

    def _image(self, argument: str) -> None:
        if not argument:
            raise UsageError("/image needs a file. Write /image FILE.")
        path, selection = _image_words(argument)
        pictures = load_all([path], selection)
        self._pending += pictures
        show_pictures(pictures, self._settings, err=False, language=self._language)
        click.echo(f"Now ask about {'it' if len(pictures) == 1 else 'them'}.")

    def _regenerate(self, _: str) -> None:
        self._stream(lambda cancel: self._chat.regenerate(cancel=cancel))

    def _clear(self, _: str) -> None:
        self._chat.clear()
        self._pending = []
        click.echo("Forgotten.")

    def _save(self, argument: str) -> None:
        if not argument:
            raise UsageError("/save needs a file. Write /save FILE.")
        path = Path(argument.strip("\"'")).expanduser()
        if path.exists():
            raise UsageError(f"{path} exists already. Choose another name.")
        write_file(path, _transcript(self._runtime, self._chat, as_json=path.suffix == ".json").encode())
        echo(f"Saved to {one_line(str(path))}; only you can read it.")


def _image_words(argument: str) -> tuple[Path, Selection]:
    """Return the file, and the window and frame of /image; the name of a file may have spaces."""
    words, window, frame = argument.split(), None, "middle"
    while len(words) > 1 and not Path(argument.strip("\"'")).expanduser().exists():
        last = words[-1]
        if last in ("middle", "all") or last.isdecimal():
            frame = last
        elif last in PRESETS or re.fullmatch(r"-?[0-9.]+/-?[0-9.]+", last) or _is_file(argument[: -len(last)]):
            window = last  # with a file before it, any last word must be a window: loading reports a wrong one
        else:
            break
        argument = argument[: argument.rindex(last)].strip()
        words.pop()
    return Path(argument.strip("\"'")).expanduser(), Selection(window, frame)


def _is_file(argument: str) -> bool:
    return Path(argument.strip().strip("\"'")).expanduser().is_file()


def _transcript(runtime: Runtime, conversation: Chat, *, as_json: bool) -> str:
    manifest = runtime.manifest
    if as_json:
        turns = [
            {
                "question": turn.question,
                "images": [picture.sha256 for picture in turn.pictures],
                "answer": turn.answer,
                "stop_reason": "interrupted"
                if turn.interrupted
                else turn.done.stop_reason
                if turn.done
                else "cancelled",
            }
            for turn in conversation.turns
        ]
        return json.dumps(
            {"notice": manifest.notice, "model": manifest.name, "turns": turns}, ensure_ascii=False, indent=2
        )
    lines = [manifest.notice, f"Model: {manifest.name}", ""]
    for turn in conversation.turns:
        images = "".join(f"[image {picture.sha256[:12]}] " for picture in turn.pictures)
        lines += [f"> {images}{turn.question}", turn.answer, ""]
    return "\n".join(lines)


def _piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


@contextlib.contextmanager
def _line_editing(commands: list[str]) -> Iterator[None]:
    """Let readline complete commands; its history stays in memory, since questions are patient data."""
    try:
        import readline
    except ImportError:  # Windows has its own line editing
        yield
        return
    readline.set_completer_delims(" \t\n")
    readline.set_completer(lambda text, n: ([c for c in commands if c.startswith(text)] + [None])[n] if text else None)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.clear_history()
