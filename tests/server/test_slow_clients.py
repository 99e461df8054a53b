"""Clients that hold a connection open for nothing: each kind is cut in time, and other clients do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from server_process import Server
from starlette.types import Receive, Scope, Send

from bimedix_edge.server.front.limits import Limits
from bimedix_edge.server.front.listening import bind
from bimedix_edge.server.front.serving import serve_app

# like the server's limits, but seconds long
QUICK = Limits(
    connections=20, head_bytes=4096, head_s=1.0, body_bytes=1 << 16, body_grace_s=1.0, body_s=3.0, write_s=1.0
)
LOOK_S = 1.0
SLACK_S = 3.0  # for a busy machine
LIMITS = Limits()
SIEGE = Path(__file__).with_name("siege.py")


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, and answer with the number of bytes in the path."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    left = int(scope["path"].strip("/") or 2)
    length = str(left).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    while left > 0:
        chunk = b"x" * min(left, 1 << 16)
        left -= len(chunk)
        await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})


@contextlib.asynccontextmanager
async def quick_server(limits: Limits = QUICK) -> AsyncIterator[int]:
    """Run real connections with quick limits around an application of a few lines, and yield the port."""
    listener = bind("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    up = asyncio.Event()

    async def work() -> None:
        up.set()
        await stop.wait()
        raise _Enough

    stop = asyncio.Event()
    task = asyncio.create_task(serve_app(_app, listener, work, limits=limits))
    await up.wait()
    try:
        yield port
    finally:
        stop.set()
        with contextlib.suppress(_Enough):
            await task


class _Enough(Exception):
    pass


async def seconds_until_cut(port: int, sent: bytes, trickle: bytes) -> float:
    """Connect, send, continue with a few bytes ten times a second, and return when the server cut the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start_s = time.monotonic()
    try:
        writer.write(sent)
        for _ in range(200):
            writer.write(trickle)
            with contextlib.suppress(asyncio.TimeoutError):
                if not await asyncio.wait_for(reader.read(1 << 16), 0.1):
                    break
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return time.monotonic() - start_s


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


# the first bytes, and the bytes that follow again and again
SLOW = {
    "nothing is sent": (b"", b""),
    "half a head": (REQUEST, b""),
    "a line that never ends": (b"", b"G"),
    "headers that never end": (REQUEST, b"X: y\r\n"),
    "idle after an answer": (REQUEST + b"\r\n", b""),
    "half a second head": (REQUEST + b"\r\n" + REQUEST, b"X: y\r\n"),
    "no body": (POST, b""),
    "a body in drops": (POST, b"x"),
    "a body in small chunks": (CHUNKED, b"1\r\nx\r\n"),
}


def test_a_client_that_does_not_send_is_cut() -> None:
    async def check() -> None:
        async with quick_server() as port:
            took_s = await asyncio.gather(*(seconds_until_cut(port, *kind) for kind in SLOW.values()))
            # heads and bodies have the same limit in this test
            wrong = {
                name: seconds
                for name, seconds in zip(SLOW, took_s, strict=True)
                if not QUICK.head_s * 0.9 <= seconds <= QUICK.head_s + LOOK_S + SLACK_S
            }
            assert wrong == {}

    asyncio.run(check())


def test_a_client_that_does_not_read_is_cut() -> None:
    async def check() -> None:
        async with quick_server() as port:
            # more than the system's buffers hold
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read(1)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(QUICK.write_s + LOOK_S + SLACK_S)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            total = 0
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 20):
                    total += len(data)
            assert total < 50_000_000
            writer.transport.abort()

    asyncio.run(check())


def test_a_client_that_reads_slowly_is_not_cut() -> None:
    async def check() -> None:
        async with quick_server() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /10000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            total = 0
            while data := await reader.read(1 << 20):
                total += len(data)
                await asyncio.sleep(0.02)
            assert total > 10_000_000
            writer.close()

    asyncio.run(check())


def test_a_steady_body_and_requests_one_after_the_other_are_not_cut() -> None:
    async def check() -> None:
        limits = replace(QUICK, body_bytes_per_s=1000)
        async with quick_server(limits) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 7500\r\n\r\n")
            for _ in range(15):
                writer.write(b"x" * 500)
                await asyncio.sleep(0.1)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            for _ in range(4):
                await asyncio.sleep(0.4)
                writer.write(REQUEST + b"\r\n")
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            writer.close()

    asyncio.run(check())


def test_beyond_the_limit_the_connection_that_waited_longest_is_cut() -> None:
    async def check() -> None:
        async with quick_server(replace(QUICK, head_s=30.0)) as port:
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(QUICK.connections)]
            await asyncio.sleep(0.1)
            for _ in range(2 * QUICK.connections):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(REQUEST + b"Connection: close\r\n\r\n")
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
                writer.close()
            # the first connection is the first to be cut
            assert await asyncio.wait_for(idle[0][0].read(), 5) == b""
            for _, writer in idle:
                writer.transport.abort()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000, 431, "headers_too_large"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "invalid_http"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "invalid_http"),
        (CHUNKED + b"zz\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
    ],
)
def test_bytes_that_are_not_http_get_an_error(sent: bytes, status: int, code: str) -> None:
    async def check() -> None:
        async with quick_server() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            assert json.loads(body)["error"]["code"] == code
            writer.close()

    asyncio.run(check())


def _healthy_p95_s(server: Server, seconds: float) -> float:
    took = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s or len(took) < 20:
        start_s = time.monotonic()
        assert server.ask().status == 200
        took.append(time.monotonic() - start_s)
    return statistics.quantiles(took, n=20)[-1]


def _besieged(server: Server, n_clients: int, seconds: float) -> tuple[float, list[float]]:
    """Return the p95 of healthy requests beside slow clients, and how long each of their connections lasted."""
    command = [sys.executable, str(SIEGE), server.host, server.key, str(n_clients), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as siege:
        time.sleep(1)  # until they are connected
        p95_s = _healthy_p95_s(server, seconds - 1)
        output, _ = siege.communicate()
    return p95_s, json.loads(output)


def _until_descriptors(server: Server, wanted: int) -> int:
    deadline = time.monotonic() + 15
    while (count := server.n_descriptors()) > wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return count


def test_slow_clients_are_cut_and_their_descriptors_come_back(start_server: Callable[..., Server]) -> None:
    server = start_server()
    _healthy_p95_s(server, 0.5)
    before = server.n_descriptors()
    _, cut_after_s = _besieged(server, 40, 2)
    assert len(cut_after_s) >= 40
    # the limit, the check once a second, and a paused machine
    assert statistics.median(cut_after_s) < LIMITS.head_s + LOOK_S + SLACK_S
    assert _until_descriptors(server, before) <= before


@pytest.mark.slow
def test_two_hundred_slow_clients_for_a_minute(start_server: Callable[..., Server]) -> None:
    server = start_server()
    before = server.n_descriptors()
    alone_s = _healthy_p95_s(server, 20)
    beside_s, cut_after_s = _besieged(server, 200, 60)
    again_s = _healthy_p95_s(server, 20)
    print(
        f"\nhealthy p95 alone {alone_s * 1e3:.1f} ms, beside 200 slow clients {beside_s * 1e3:.1f} ms, alone again "
        f"{again_s * 1e3:.1f} ms; {len(cut_after_s)} connections cut, the longest after {max(cut_after_s):.1f} s"
    )
    assert beside_s <= 1.2 * max(alone_s, again_s)
    assert max(cut_after_s) < LIMITS.head_s + LOOK_S + SLACK_S
    assert _until_descriptors(server, before) <= before
