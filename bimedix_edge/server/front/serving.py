"""Serving an ASGI app on a socket until a signal: the first stops it gracefully, the second at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from bimedix_edge.server.front.connections import Connection
from bimedix_edge.server.front.limits import Limits

__all__ = ["log", "serve_app"]

log = logging.getLogger("bimedix_edge.server")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.05
_CUT_S = 2.0
_DATE_S = 0.5


class _WithoutValues(logging.Formatter):
    """Formats an exception as its type and where it was raised: its message may hold what a user wrote."""

    def formatException(self, ei: object) -> str:  # noqa: N802  logging's name
        kind, _, trace = ei if isinstance(ei, tuple) else (None, None, None)
        places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
        return f"{getattr(kind, '__name__', kind)} at {' < '.join(reversed(places))}"


def _configure_logs() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_WithoutValues("%(asctime)s %(message)s"))
    for name, level in (("bimedix_edge.server", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _Signals:
    """What the signals so far ask for."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._n_signals = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # counted here: two may come before the loop sees the first
        self._n_signals += 1
        self._loop.call_soon_threadsafe((self.at_once if self._n_signals > 1 else self.asked).set)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def serve_app(
    app: ASGIApp,
    listener: socket.socket,
    work: Callable[[], Awaitable[None]],
    *,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
) -> bool:
    """Answer requests until SIGINT or SIGTERM comes, or `work` ends.

    The first signal closes the socket and idle connections, and waits up to `limits.shutdown_s` for running answers.
    The second stops these at once.

    Args:
        app: The application.
        listener: A listening socket; closed afterwards.
        work: Runs beside the server; if it raises, the server ends and raises that error.
        limits: What a client may take.
        tls: TLS settings; None serves HTTP.

    Returns:
        Whether a second signal stopped it.
    """
    _configure_logs()
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_keep_alive=int(limits.head_s),
    )
    config.load()
    state = ServerState()
    _set_date(state)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(limits, config=config, server_state=state, app_state={}),
        sock=listener,
        ssl=tls,
        ssl_handshake_timeout=limits.handshake_s if tls else None,
    )
    stop = _Signals()
    with stop.listening():
        working = asyncio.ensure_future(work())
        try:
            await _until_asked(stop, working, state)
            server.close()
            await _let_end(stop, state, 0.0 if working.done() else limits.shutdown_s)
        finally:
            server.close()
            working.cancel()
            await asyncio.wait([working])
    if not working.cancelled() and (error := working.exception()) is not None:
        raise error
    return stop.at_once.is_set()


async def _until_asked(stop: _Signals, working: asyncio.Future[None], state: ServerState) -> None:
    asked = asyncio.ensure_future(stop.asked.wait())
    ends: tuple[asyncio.Future[Any], ...] = (asked, working)
    try:
        while not any(end.done() for end in ends):
            _set_date(state)
            await asyncio.wait(ends, timeout=_DATE_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()


async def _let_end(stop: _Signals, state: ServerState, seconds: float) -> None:
    """Close idle connections, wait for the others, and cut those that remain."""
    for connection in list(state.connections):
        connection.shutdown()
    deadline_s = time.monotonic() + seconds
    while (state.connections or state.tasks) and not stop.at_once.is_set() and time.monotonic() < deadline_s:
        await asyncio.sleep(_POLL_S)
    # the task of a connection ends when the connection does
    for connection in list(state.connections):
        connection.transport.abort()
    if state.tasks:
        _, late = await asyncio.wait(list(state.tasks), timeout=_CUT_S)
        for task in late:
            task.cancel()


def _set_date(state: ServerState) -> None:
    state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
