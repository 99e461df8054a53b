"""Slow clients of several kinds, in a process of their own: `siege.py HOST:PORT KEY CLIENTS SECONDS`.

Each client connects, sends its first bytes, continues with a few bytes a second, and connects again when it is cut. The
program prints, as JSON, how long each connection lasted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

# a connection ends after this, even if the server does not cut it
LONGEST_S = 60.0


def kinds(host: str, key: str) -> list[tuple[bytes, bytes]]:
    """Return for each kind of client its first bytes, and the bytes that follow every second."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return [
        (b"", b""),
        (b"GET /health HTT", b"P"),
        (f"GET /health HTTP/1.1\r\nHost: {host}\r\n".encode(), b"X: y\r\n"),
        (f"{head}Authorization: Bearer {key}\r\nContent-Length: 9000000\r\n\r\n".encode(), b"x"),
    ]


async def hold(port: int, sent: bytes, trickle: bytes) -> float:
    """Hold one connection open, and return how long the server let it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start_s = time.monotonic()
    gone = asyncio.ensure_future(reader.read())
    try:
        writer.write(sent)
        while not gone.done() and time.monotonic() - start_s < LONGEST_S:
            writer.write(trickle)
            await asyncio.wait({gone}, timeout=1)
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        writer.transport.abort()
    return time.monotonic() - start_s


async def besiege(host: str, key: str, n_clients: int, seconds: float) -> list[float]:
    """Return how long each connection lasted, with `n_clients` at once; new ones come for `seconds`."""
    until_s = time.monotonic() + seconds
    lasted_s: list[float] = []

    async def client(number: int) -> None:
        sent, trickle = kinds(host, key)[number % 4]
        while time.monotonic() < until_s:
            lasted_s.append(await hold(int(host.rpartition(":")[2]), sent, trickle))

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return lasted_s


if __name__ == "__main__":
    address, given, clients, duration = sys.argv[1:]
    print(json.dumps(asyncio.run(besiege(address, given, int(clients), float(duration)))))
