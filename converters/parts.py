"""A file written as a sequence of parts, each computed ahead on all cores and written in order.

An interrupted conversion keeps or drops a part as a whole: the header, or one tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

__all__ = ["Part", "PartWriter", "Step", "in_order", "n_bytes", "whole_part", "write_parts"]

_Result = TypeVar("_Result")
Step = Callable[[], memoryview]


@dataclass(frozen=True)
class Part:
    """One part of a file.

    Attributes:
        name: Name of the header or of a tensor.
        size_bytes: Number of bytes that its steps return together.
        steps: Returns functions that return its bytes piece by piece; they may run in parallel.
    """

    name: str
    size_bytes: int
    steps: Callable[[], Iterable[Step]]


class PartWriter(Protocol):
    """Target of the parts; see `journal.JournalledFile`."""

    @property
    def n_parts(self) -> int:
        """Return the number of parts that are written already."""

    def write(self, data: memoryview) -> None:
        """Append some bytes of the next part."""

    def end_part(self, name: str) -> None:
        """State that the bytes since the last call are a whole part."""


def write_parts(
    file: PartWriter, parts: Sequence[Part], pool: ThreadPoolExecutor, n_ahead: int, progress: Callable[[int], None]
) -> None:
    """Write the parts of a file that are still missing.

    Args:
        file: Where they go.
        parts: All parts of the file, in order.
        pool: Computes the steps; steps of the next part begin before the last one is written.
        n_ahead: Number of steps that are computed ahead, which bounds the memory.
        progress: Called with the number of bytes written.

    Raises:
        OSError: The disk is full or fails.
    """
    todo = parts[file.n_parts :]
    done = n_bytes(parts) - n_bytes(todo)
    progress(done)
    for piece in in_order(_steps(todo), pool, n_ahead):
        if isinstance(piece, Part):
            file.end_part(piece.name)
        else:
            file.write(piece)
            done += len(piece)
            progress(done)


def whole_part(name: str, data: bytes) -> Part:
    """Return a part whose bytes are already in memory."""
    return Part(name, len(data), lambda: [lambda: memoryview(data)])


def n_bytes(parts: Iterable[Part]) -> int:
    """Return the total size of some parts."""
    return sum(part.size_bytes for part in parts)


def in_order(steps: Iterable[Callable[[], _Result]], pool: ThreadPoolExecutor, n_ahead: int) -> Iterator[_Result]:
    """Run functions on a pool and yield their results in order, at most `n_ahead` of them ahead of the consumer."""
    pending: deque[Future[_Result]] = deque()
    try:
        for step in steps:
            pending.append(pool.submit(step))
            if len(pending) > n_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _steps(parts: Iterable[Part]) -> Iterator[Callable[[], memoryview | Part]]:
    for part in parts:
        yield from part.steps()
        yield _End(part)


@dataclass(frozen=True)
class _End:
    part: Part

    def __call__(self) -> Part:
        return self.part
