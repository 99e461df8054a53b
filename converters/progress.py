"""How a conversion or a download reports its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["StageProgress", "byte_counter", "ignore_progress", "one_at_a_time"]

# stage, bytes done, bytes in all; stages are `description`, `weights` and `check` of a download, `resume`, `decoder`,
# `vision`, `source`, `quality` and `verify` of a conversion, and `calibrate`
StageProgress = Callable[[str, int, int], None]


def byte_counter(stage: str, total: int, report: StageProgress) -> Callable[[int], None]:
    """Return a function that adds up bytes and reports the sum; totals are estimates, so the sum never exceeds them."""
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done = min(done + n_bytes, total)
        report(stage, done, total)

    return count


def one_at_a_time(progress: StageProgress) -> StageProgress:
    """Return a function that several threads may call at once."""
    lock = threading.Lock()

    def report(stage: str, done: int, total: int) -> None:
        with lock:
            progress(stage, done, total)

    return report


def ignore_progress(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""
