"""Progress bars: one for each stage, with bytes, rate and time left; or one for all steps."""

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
    """Bars on standard error, removed when the work is done; nothing if standard error is not a terminal.

    Args:
        console: Console of standard error.
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
        """Show that `done` of `total` bytes of a stage are complete; the rate counts from the first call."""
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
    """One bar of steps with the name of the next one; where it shows and when it goes, as in `StageBars`.

    Args:
        console: Console of standard error.
    """

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None)

    def show(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` steps are complete, and the name of the next one."""
        self._progress.update(self._task, completed=done, total=total, description=what)

    def __enter__(self) -> StepBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
