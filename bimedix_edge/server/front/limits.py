"""What a client may take of the server: bytes, seconds, requests and connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bimedix_edge.server.api.errors import ApiError, retry_after

__all__ = ["BodyRoom", "Limits", "RateLimit", "read_body"]

_MAX_RATES = 4096


@dataclass(frozen=True)
class Limits:
    """Limits of the server; uvicorn has no time limits.

    Attributes:
        connections: Most open connections; one more cuts the connection that has waited longest without a request.
        head_bytes: Most bytes of a request's line and headers.
        head_s: Time from connecting, or from the end of the last answer, to the end of a request's headers.
        body_bytes: Most bytes of one request's body.
        bodies_bytes: Most bytes of all bodies in memory together.
        body_grace_s, body_bytes_per_s: A body must arrive at this average rate, apart from the first seconds.
        body_s: Time for a whole body, at any rate.
        write_s: Time until a client that does not read is cut, also while its connection is being closed.
        handshake_s: Time for the TLS handshake.
        requests_per_s, burst: Rate of requests with one key, or from one address without a key.
        shutdown_s: Time for running answers once the server is asked to stop.
        images: Most images of one request.
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
    """A token bucket for each name: `burst` requests at once, `per_s` in the long run.

    Args:
        per_s: How many requests come back each second.
        burst: How many requests a bucket holds.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """Take one request from a bucket.

        Raises:
            ApiError: 429, the bucket is empty.
        """
        now = time.monotonic()
        left, then = self._buckets.pop(name, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._per_s)
        allowed = left >= 1
        self._buckets[name] = (left - allowed, now)
        # the buckets that go are those longest unused, and so the fullest
        while len(self._buckets) > _MAX_RATES:
            self._buckets.popitem(last=False)
        if not allowed:
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"There were more than {self._per_s:g} requests a second. Wait a moment.",
                headers=retry_after((1 - left) / self._per_s),
            )


class BodyRoom:
    """The memory that the bodies of all requests share.

    Args:
        total_bytes: Its size.
    """

    def __init__(self, total_bytes: int) -> None:
        self._left = total_bytes

    @contextlib.asynccontextmanager
    async def body(self, receive: Receive, length: int | None, limit_bytes: int) -> AsyncIterator[bytes]:
        """Read a body, which takes up memory as long as the block runs.

        Args:
            receive: ASGI's function.
            length: Length that the request states; None if it states none.
            limit_bytes: Most bytes of this body.

        Raises:
            ApiError: 413, it is too long; 503, other requests have the memory.
            ClientDisconnect: The client has left.
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
                        "Other requests take up the memory for this one. Send it again in a moment.",
                        headers=retry_after(2),
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
        ClientDisconnect: The client left before all of it came.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body", b""):
            yield chunk
        if not message.get("more_body", False):
            return
        # a fast sender must not starve the other clients
        await asyncio.sleep(0)


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"The request is larger than {limit_bytes >> 20} MiB. Send fewer or smaller images.",
    )
