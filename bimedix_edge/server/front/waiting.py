"""Who is next: requests wait by holder, and the holders take turns, so that one with many does not keep others."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["WaitingLine"]

T = TypeVar("T", bound=Hashable)


class WaitingLine(Generic[T]):
    """A queue in which each holder's requests keep their order, and the holders take turns."""

    def __init__(self) -> None:
        self._lines: collections.OrderedDict[str, collections.deque[T]] = collections.OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        """Yield all in the order in which they would be taken."""
        lines = [list(line) for line in self._lines.values()]
        for turn in range(max(map(len, lines), default=0)):
            yield from (line[turn] for line in lines if turn < len(line))

    def put(self, holder: str, request: T) -> None:
        """Let a request wait behind those of its holder."""
        self._lines.setdefault(holder, collections.deque()).append(request)

    def put_first(self, holder: str, request: T) -> None:
        """Let a request that was taken wait again, before all others."""
        self._lines.setdefault(holder, collections.deque()).appendleft(request)
        self._lines.move_to_end(holder, last=False)

    def take(self) -> T:
        """Return the next request, which waits no longer.

        Raises:
            IndexError: none waits.
        """
        if not self._lines:
            raise IndexError("nobody waits")
        holder, line = next(iter(self._lines.items()))
        request = line.popleft()
        self._lines.move_to_end(holder)
        if not line:
            del self._lines[holder]
        return request

    def remove(self, holder: str, request: T) -> bool:
        """Let a request wait no longer; return whether it did."""
        line = self._lines.get(holder, collections.deque())
        if request not in line:
            return False
        line.remove(request)
        if not line:
            del self._lines[holder]
        return True
