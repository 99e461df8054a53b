"""The queue: tenants take turns, so that one with many requests does not hold up the others."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["WaitingLine"]

T = TypeVar("T", bound=Hashable)


class WaitingLine(Generic[T]):
    """A queue in which each tenant's requests keep their order, and the tenants take turns."""

    def __init__(self) -> None:
        self._lines: collections.OrderedDict[str, collections.deque[T]] = collections.OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        """Yield all requests in the order in which `take` would return them."""
        lines = [list(line) for line in self._lines.values()]
        for turn in range(max(map(len, lines), default=0)):
            yield from (line[turn] for line in lines if turn < len(line))

    def put(self, tenant: str, request: T) -> None:
        """Add a request behind those of its tenant."""
        self._lines.setdefault(tenant, collections.deque()).append(request)

    def put_first(self, tenant: str, request: T) -> None:
        """Put a request that was taken back, before all others."""
        self._lines.setdefault(tenant, collections.deque()).appendleft(request)
        self._lines.move_to_end(tenant, last=False)

    def take(self) -> T:
        """Remove the next request and return it.

        Raises:
            IndexError: The queue is empty.
        """
        if not self._lines:
            raise IndexError("the queue is empty")
        tenant, line = next(iter(self._lines.items()))
        request = line.popleft()
        self._lines.move_to_end(tenant)
        if not line:
            del self._lines[tenant]
        return request

    def remove(self, tenant: str, request: T) -> bool:
        """Remove a request; return whether it was in the queue."""
        line = self._lines.get(tenant, collections.deque())
        if request not in line:
            return False
        line.remove(request)
        if not line:
            del self._lines[tenant]
        return True
