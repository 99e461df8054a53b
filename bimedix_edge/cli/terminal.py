"""The terminal while a model answers: a progress line, the streamed text, timings."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, TextIO

import click
from rich.console import Console

from bimedix_edge.cli.bidi import display_width, is_rtl, shape, wrap
from bimedix_edge.events import Cancel, Done, Encode, Event, Prefill
from bimedix_edge.settings import Settings, terminal_reorders

__all__ = [
    "AnswerPrinter",
    "ProgressLine",
    "cancel_on_interrupt",
    "displayed",
    "echo",
    "plain_console",
    "printable",
    "reorders",
    "timing_line",
]

_ERASE_LINE = "\r\x1b[K"
_MIN_COLUMNS = 20


class ProgressLine:
    """One line on standard error that is rewritten as work proceeds; nothing if standard error is not a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._enabled = stream.isatty()
        self._shown = False

    def show(self, event: Event) -> None:
        """Show the progress in an `Encode` or `Prefill` event; any other event clears the line."""
        if isinstance(event, Encode) and not event.done:
            self._write(f"encoding image {event.image + 1} of {event.n_images} …")
        elif isinstance(event, Prefill) and event.n_done < event.n_total:
            done, total = event.n_done - event.n_reused, event.n_total - event.n_reused
            self._write(f"reading the prompt: {done} of {total} tokens, {100 * done // total} % …")
        else:
            self.clear()

    def clear(self) -> None:
        """Erase the line."""
        if self._shown:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()
            self._shown = False

    def _write(self, text: str) -> None:
        if self._enabled:
            self._stream.write(_ERASE_LINE + text[: _columns() - 1])
            self._stream.flush()
            self._shown = True


class AnswerPrinter:
    """Writes an answer as it streams.

    Args:
        stream: Standard output.
        reorder: Whether to put right-to-left lines into visual order. The text is then wrapped here, and the last line
            is drawn again with each token, since its order changes until it is complete.
    """

    def __init__(self, stream: TextIO, *, reorder: bool) -> None:
        self._stream = stream
        self._reorder = reorder
        self._is_terminal = stream.isatty()
        self._paragraph = ""
        self._lines_done = 0

    def write(self, text: str) -> None:
        """Show more of the answer."""
        if self._is_terminal:
            text = printable(text)
        if not self._reorder:
            self._stream.write(text)
        else:
            *ended, rest = text.split("\n")
            for part in ended:
                self._extend(part)
                self._end_paragraph()
            self._extend(rest)
        self._stream.flush()

    def finish(self) -> None:
        """End the last line."""
        self._stream.write("\n")
        self._stream.flush()
        self._paragraph, self._lines_done = "", 0

    def _extend(self, text: str) -> None:
        if not text:
            return
        self._paragraph += text
        columns = _columns() - 1
        rtl = is_rtl(self._paragraph)
        lines = wrap(self._paragraph, columns)
        # a complete line never changes, since only the end grows
        for index in range(self._lines_done, len(lines)):
            end = "\n" if index < len(lines) - 1 else ""
            self._stream.write(_ERASE_LINE + _visual(lines[index], columns, rtl=rtl) + end)
        self._lines_done = len(lines) - 1

    def _end_paragraph(self) -> None:
        self._stream.write("\n")
        self._paragraph, self._lines_done = "", 0


def printable(text: str) -> str:
    """Return `text` without control characters, which a terminal would execute."""
    return "".join(
        character for character in text if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    )


def echo(text: str, *, err: bool = False, reorder: bool = False) -> None:
    """Print lines: see `displayed`."""
    stream = sys.stderr if err else sys.stdout
    click.echo(displayed(text, stream, reorder=reorder), file=stream)


def displayed(text: str, stream: IO[str], *, reorder: bool) -> str:
    """Return lines for a stream: cut at spaces to fit if it is a terminal, unchanged otherwise.

    Args:
        text: Lines in logical order.
        stream: Where they will be written.
        reorder: Whether to put right-to-left lines into visual order, at the right edge of the terminal.
    """
    if not stream.isatty():
        return text
    columns = _columns() - 1
    shown: list[str] = []
    for paragraph in text.split("\n"):
        rtl = is_rtl(paragraph)
        lines = wrap(paragraph, columns)
        shown += [_visual(line, columns, rtl=rtl) for line in lines] if reorder else lines
    return "\n".join(shown)


def _visual(line: str, columns: int, *, rtl: bool) -> str:
    """Return one line in visual order, at the right edge if its paragraph runs from right to left."""
    line = shape(line, rtl=rtl)
    return " " * max(0, columns - display_width(line)) + line if rtl else line


def reorders(settings: Settings, stream: IO[str]) -> bool:
    """Return whether to reorder right-to-left lines for `stream`; never unless it is a terminal."""
    if not stream.isatty():
        return False
    return settings.bidi == "on" or (settings.bidi == "auto" and not terminal_reorders())


def timing_line(done: Done, load_ms: float | None = None) -> str:
    """Return one line with the timings of an answer."""
    times, usage = done.timings, done.usage
    evaluated = usage.prompt - usage.reused
    read_rate = evaluated / times.prefill * 1e3 if times.prefill else 0.0
    # prefill yields the first token
    written = max(usage.generated - 1, 0)
    write_rate = written / times.decode * 1e3 if times.decode else 0.0
    parts = [] if load_ms is None else [f"load {load_ms:.0f} ms"]
    parts += [
        f"image {times.encode:.0f} ms",
        f"prompt {evaluated} new + {usage.reused} reused tokens, {times.prefill:.0f} ms ({read_rate:.0f}/s)",
        f"first token {times.first_token:.0f} ms",
        f"answer {usage.generated} tokens ({write_rate:.0f}/s)",
    ]
    return " · ".join(parts)


@contextmanager
def cancel_on_interrupt() -> Iterator[Cancel]:
    """Yield a `Cancel` that Ctrl-C triggers; a second Ctrl-C interrupts the program as usual."""
    cancel = Cancel()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if cancel.cancelled:
            raise KeyboardInterrupt
        cancel.cancel()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged: a path or a name may look like rich's markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, _MIN_COLUMNS)
