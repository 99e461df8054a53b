"""Connections with time limits: uvicorn's HTTP/1.1 protocol, in which no client can hold a connection open for nothing.

uvicorn waits for ever for the rest of a request, and for a client that does not read. Here a timer checks every
connection once a second. Its limit depends on its phase:

    head     the client still has to send a whole request line and headers
    body     the client still has to send the body
    answer   the server still has to answer
    read     the client still has to read what was written, or to take the end of the connection
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bimedix_edge.server.api.errors import ApiError
from bimedix_edge.server.front.limits import Limits
from bimedix_edge.server.front.listening import notice_dead_peers, reset_when_closed

__all__ = ["Connection"]

Phase = Literal["head", "body", "answer", "read"]

_LOOK_S = 1.0


class Connection(H11Protocol):
    """One connection; uvicorn handles its requests.

    Args:
        limits: What a client may take.
        arguments: Arguments of uvicorn's class.

    Attributes:
        phase: What the connection waits for.
        since_s: When that began, on the event loop's clock.
        n_requests: How many requests it has answered.
    """

    def __init__(self, limits: Limits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self.phase: Phase = "head"
        self.since_s = 0.0
        self._received = 0
        self.n_requests = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; beyond the limit, the connection that has waited longest for its client is cut."""
        super().connection_made(transport)
        notice_dead_peers(transport.get_extra_info("socket"))
        self.since_s = self.loop.time()
        self._timer = self.loop.call_later(_LOOK_S, self._look)
        if len(self.connections) > self._limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._received += len(data)
        super().data_received(data)
        self._enter()

    def on_response_complete(self) -> None:
        """Wait for the next request, or the rest of this one."""
        self.n_requests += 1
        self.since_s, self._received = self.loop.time(), 0
        super().on_response_complete()
        self._enter()

    def pause_writing(self) -> None:
        """Note that the client has stopped reading."""
        super().pause_writing()
        self._enter()

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        super().resume_writing()
        self._enter()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP/1.1, in the shape of our other errors, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            # the task that works on this request sees a client that has left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        # uvicorn calls this while it handles h11's error
        fault = sys.exc_info()[1]
        if isinstance(fault, h11.RemoteProtocolError) and fault.error_status_hint == 431:
            limit = self._limits.head_bytes
            error = ApiError(431, "headers_too_large", f"The headers are longer than {limit} bytes. Send fewer.")
        else:
            error = ApiError(400, "invalid_http", "The request is not valid HTTP/1.1. Correct it.")
        body = error.body()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._enter()

    def _current(self) -> Phase:
        if self.flow.write_paused or self.transport.is_closing():
            return "read"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        return "head" if self.cycle is None or self.cycle.response_complete else "answer"

    def _enter(self) -> None:
        """Restart the time limit if the phase has changed."""
        if (phase := self._current()) != self.phase:
            self.phase, self.since_s, self._received = phase, self.loop.time(), 0

    def _look(self) -> None:
        """Cut the connection if its client takes too long."""
        self._enter()
        if self._overdue(self.loop.time() - self.since_s):
            # close() would wait until the client has read the rest, and so would the system without a reset
            reset_when_closed(self.transport.get_extra_info("socket"))
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(_LOOK_S, self._look)

    def _overdue(self, waited_s: float) -> bool:
        limits = self._limits
        if self.phase == "head":
            return waited_s > limits.head_s
        if self.phase == "body":
            wanted = (waited_s - limits.body_grace_s) * limits.body_bytes_per_s
            # the server discards a body that still comes after the answer, and does not wait for its end
            return self._received < wanted or waited_s > limits.body_s or self._received > 2 * limits.body_bytes
        return self.phase == "read" and waited_s > limits.write_s

    def _make_room(self) -> None:
        waiting = [
            connection
            for connection in self.connections
            if isinstance(connection, Connection) and connection.phase == "head"
        ]
        # first those that never sent a request; this connection itself is one of them
        victim = min(waiting, key=lambda connection: (connection.n_requests > 0, connection.since_s))
        victim.transport.abort()
