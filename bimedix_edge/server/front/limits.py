"""What a client may take of the server: bytes, seconds, requests, connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bimedix_edge.server.api.errors import ApiError

__all__ = ["BodyRoom", "Limits", "RateLimit", "read_body"]

_MAX_RATES = 4096


@dataclass(frozen=True)
class Limits:
    """Limits of the server; uvicorn has none on time.

    Attributes:
        connections: open at once; one more makes the one go that has waited longest without sending a request.
        head_bytes: of a request's line and headers.
        head_s: from connecting, or from the end of the last answer, to the end of a request's headers.
        body_bytes: of one request's body.
        bodies_bytes: of all bodies in memory together.
        body_grace_s, body_bytes_per_s: a body must on average arrive at this rate, the first seconds aside.
        body_s: for a whole body, at any rate.
        write_s: for a client that does not read, until the connection is cut; also for one that is being closed.
        handshake_s: of TLS.
        requests_per_s, burst: of one key, or of one address without a key.
        shutdown_s: that running answers get when the server is told to stop.
        images: of one request.
    """

    connections: int = 512
    head_bytes: int = 16 << 10
    head_s: float = 10.0
    body_bytes: int = 64 << 20
    bodies_bytes: int = 512 << 20
    body_grace_s: float = 10.0
    body_bytes_per_s: float = 64 << 10
    body_s: float = 300.0
    write_s: float = 30.0
    handshake_s: float = 10.0
    requests_per_s: float = 100.0
    burst: int = 400
    shutdown_s: float = 30.0
    images: int = 16


class RateLimit:
    """A bucket of requests for each name: `burst` at once, `per_s` in the long run.

    Args:
        per_s: how many come back each second.
        burst: how many a bucket holds.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """Take one request from a bucket.

        Raises:
            ApiError: 429, there is none left.
        """
        now = time.monotonic()
        left, then = self._buckets.pop(name, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._per_s)
        allowed = left >= 1
        self._buckets[name] = (left - allowed, now)
        # the buckets forgotten are those longest unused, and so the fullest
        while len(self._buckets) > _MAX_RATES:
            self._buckets.popitem(last=False)
        if not allowed:
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"Expected at most {self._per_s:g} requests a second, but there were more; wait a moment.",
                retry_after_s=(1 - left) / self._per_s,
            )


class BodyRoom:
    """The memory that all requests' bodies share.

    Args:
        total_bytes: how much.
    """

    def __init__(self, total_bytes: int) -> None:
        self._left = total_bytes

    @contextlib.asynccontextmanager
    async def body(self, receive: Receive, length: int | None, limit_bytes: int) -> AsyncIterator[bytes]:
        """Read a body and count it as long as the block runs.

        Args:
            receive: ASGI's.
            length: as the request states it, if it does.
            limit_bytes: of this body.

        Raises:
            ApiError: 413, it is too long; 503, other requests have the memory.
            ClientDisconnect: the client has gone.
        """
        if length is not None and length > limit_bytes:
            raise _too_large(limit_bytes)
        taken = 0
        data = bytearray()
        try:
            async for chunk in read_body(receive):
                taken += len(chunk)
                self._left -= len(chunk)
                if taken > limit_bytes:
                    raise _too_large(limit_bytes)
                if self._left < 0:
                    raise ApiError(
                        503,
                        "memory",
                        "Expected memory for this request, but other requests have it; send it again in a moment.",
                        retry_after_s=2,
                    )
                data += chunk
            whole = bytes(data)
            del data
            yield whole
        finally:
            self._left += taken


async def read_body(receive: Receive) -> AsyncIterator[bytes]:
    """Yield a body's chunks.

    Raises:
        ClientDisconnect: the client has gone before all of it came.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            yield chunk
        if not message.get("more_body", False):
            return
        # a fast sender must not keep the others waiting
        await asyncio.sleep(0)


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"Expected a request of at most {limit_bytes >> 20} MiB, but it is larger; send fewer or smaller images.",
    )
