"""Open a model for a command: convert the demo model on first use, show progress and the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bimedix_edge.bundle import Bundle, open_bundle
from bimedix_edge.cli.language import warning_line
from bimedix_edge.cli.terminal import displayed, reorders
from bimedix_edge.decoder.kernels import AUTO
from bimedix_edge.imaging.words import Language
from bimedix_edge.planning.fit import Plan
from bimedix_edge.runtime import Runtime
from bimedix_edge.settings import Settings
from bimedix_edge.store import Store

__all__ = ["model_directory", "open_model", "open_runtime", "show_plan", "work_progress"]

_SHOW_PROGRESS_ABOVE_BYTES = 200_000_000


def open_runtime(settings: Settings, console: Console, *, quiet: bool = False, language: Language = "en") -> Runtime:
    """Open the model that the settings name, or the demo model if none is installed, and print its plan.

    Args:
        settings: The model, and how it runs.
        console: Standard error.
        quiet: Whether to print nothing but errors.
        language: Language of warnings.
    """
    directory = model_directory(settings, console, quiet=quiet)
    with _checking(directory, console, quiet=quiet) as progress:
        runtime = Runtime.open(
            directory, settings=settings, progress=progress, notify=lambda text: console.print(text, style="yellow")
        )
    if not quiet:
        show_plan(runtime.plan, console, settings, language)
    if runtime.kernels.name is None and settings.kernels == AUTO and not quiet:
        console.print(f"llama.cpp's own kernels compute: {runtime.kernels.reason}.", style="yellow")
    if runtime.vision_fault and not quiet:
        console.print(f"The CPU computes the image encoder: {runtime.vision_fault}", style="yellow")
    return runtime


def show_plan(plan: Plan, console: Console, settings: Settings, language: Language = "en") -> None:
    """Print a plan in one line, and its warnings.

    Args:
        plan: The plan.
        console: Where to print.
        settings: Their `bidi` says whether Arabic lines are reordered.
        language: Language of warnings.
    """
    console.print(plan.line, style="dim", soft_wrap=True)
    for warning in plan.warnings:
        line = warning_line(warning, language)
        shown = displayed(line, console.file, reorder=reorders(settings, console.file))
        console.print(shown, style="yellow", soft_wrap=True)


def open_model(settings: Settings, console: Console, *, quiet: bool = False) -> Bundle:
    """Verify the model that `open_runtime` would open, without loading it.

    Args:
        settings, console, quiet: See `open_runtime`.
    """
    directory = model_directory(settings, console, quiet=quiet)
    with _checking(directory, console, quiet=quiet) as progress:
        return open_bundle(directory, progress)


def model_directory(settings: Settings, console: Console, *, quiet: bool = False) -> Path:
    """Return the directory of the model that the settings name; the demo model is converted if it is missing.

    Args:
        settings, console, quiet: See `open_runtime`.
    """
    store = Store(settings.store_dir, settings.cache_dir)
    directory = store.find(settings.model) if settings.model else store.default()
    if store.is_demo(directory):
        if not quiet:
            console.print(
                "No model is installed: this is the demo model, which knows no medicine."
                if settings.model is None
                else "This is the demo model, which knows no medicine.",
                style="yellow",
            )
        if not directory.is_dir():
            from bimedix_edge.cli.commands.convert import convert_demo

            if not quiet:
                console.print("Converting it, once …", style="yellow")
            convert_demo(store, console)
    return directory


@contextlib.contextmanager
def _checking(directory: Path, console: Console, *, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Show a bar while a large model is hashed."""
    size = sum(file.stat().st_size for file in directory.iterdir()) if directory.is_dir() else 0
    if quiet or size < _SHOW_PROGRESS_ABOVE_BYTES or not console.is_terminal:
        yield None
        return
    with work_progress(console, "checking the model", size) as advance:
        yield advance


@contextlib.contextmanager
def work_progress(console: Console, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes while the block runs, and remove it afterwards."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.advance(task, count)
