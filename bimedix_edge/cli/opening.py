"""Opening a model for a command: the demo model converted on first use, hashing shown, and said which model answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bimedix_edge.kernels import AUTO
from bimedix_edge.runtime import Runtime
from bimedix_edge.settings import Settings
from bimedix_edge.store import Store

__all__ = ["open_runtime", "work_progress"]

_SHOW_PROGRESS_ABOVE_BYTES = 200_000_000


def open_runtime(settings: Settings, console: Console, *, quiet: bool = False) -> Runtime:
    """Open the model the settings name, or the demo model if none is installed, and say so.

    Args:
        settings: which model, and how.
        console: standard error.
        quiet: whether to say nothing but errors.
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
            from bimedix_edge.cli.convert import convert_demo

            if not quiet:
                console.print("Converting it, once …", style="yellow")
            convert_demo(store, console)
    size = sum(file.stat().st_size for file in directory.iterdir()) if directory.is_dir() else 0
    if quiet or size < _SHOW_PROGRESS_ABOVE_BYTES or not console.is_terminal:
        runtime = Runtime.open(directory, settings=settings)
    else:
        with work_progress(console, "checking the model", size) as advance:
            runtime = Runtime.open(directory, settings=settings, progress=advance)
    if runtime.kernels.name is None and settings.kernels == AUTO and not quiet:
        console.print(f"llama.cpp's own kernels compute: {runtime.kernels.reason}.", style="yellow")
    return runtime


@contextlib.contextmanager
def work_progress(console: Console, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes while the block runs; it is gone afterwards."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.advance(task, count)
