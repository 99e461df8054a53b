"""Bars for a long piece of work: one a stage, with bytes, rate and time left; or one for all its steps."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["StageBars", "StepBar"]


class StageBars:
    """Bars on standard error that are gone when the work is done; nothing if that is no terminal.

    Args:
        console: standard error.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:11}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of a stage are complete; what a stage starts with counts as no speed."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, completed=done, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def __enter__(self) -> StageBars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class StepBar:
    """One bar of steps, and what comes next, on standard error; gone at the end, nothing if that is no terminal.

    Args:
        console: standard error.
    """

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None)

    def show(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` steps are complete, and what comes next."""
        self._progress.update(self._task, completed=done, total=total, description=what)

    def __enter__(self) -> StepBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
