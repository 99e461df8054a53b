"""The one way to run a process of ours: start it, exchange frames with it, keep its frames clean, and end it.

A child reads frames from standard input and writes frames to standard output. A frame is its length in 8 bytes,
little-endian, and then the bytes themselves. What they mean is the business of the two sides.

The parent of the image codecs blocks while it waits for its child; the server has an event loop. So the functions that
wait exist twice, and everything else is shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import warnings
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio.subprocess

__all__ = [
    "MAX_FRAME_BYTES",
    "PREFIX",
    "FrameError",
    "frame",
    "frame_length",
    "kill",
    "read_frame",
    "read_frame_async",
    "silence",
    "start",
    "start_async",
    "stop_async",
]

PREFIX = struct.Struct("<Q")
# twice the largest file that `imaging` reads
MAX_FRAME_BYTES = 1 << 30
# Ctrl-C in a terminal reaches every process there; what it means for a child, its parent decides
_RUN = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import sys, json, importlib; sys.path[:] = json.loads(sys.argv[1]); "
    "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])()"
)
_PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}


class FrameError(Exception):
    """A frame is malformed or too long, so the two processes cannot go on.

    Its message quotes nothing of the frame, which may hold what a user wrote.
    """


def start(entry: str) -> subprocess.Popen[bytes]:
    """Start a child.

    Args:
        entry: The function that the child runs, as `package.module:function`.
    """
    return subprocess.Popen(_command(entry), **_PIPES)  # noqa: S603  this very Python


async def start_async(entry: str) -> asyncio.subprocess.Process:
    """Start a child as `start` does, for an event loop."""
    import asyncio  # here, since the codecs' child would load it for nothing

    return await asyncio.create_subprocess_exec(*_command(entry), **_PIPES)


def silence() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the two pipes to the parent for frames, in a child that has just begun.

    Native libraries print. From here on this goes nowhere: it would corrupt a frame, or show a patient's data on the
    terminal.

    Returns:
        The stream of frames from the parent, and the stream of frames to it.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    warnings.simplefilter("ignore")
    return requests, replies


def frame(data: bytes) -> list[bytes]:
    """Return a frame as pieces to write one after the other; the data is not copied.

    Raises:
        FrameError: It is longer than `MAX_FRAME_BYTES`.
    """
    prefix = PREFIX.pack(len(data))
    frame_length(prefix)
    return [prefix, data]


def frame_length(prefix: bytes, limit_bytes: int | None = None) -> int:
    """Return how many bytes follow a prefix of `PREFIX.size` bytes.

    Args:
        prefix: The first bytes of a frame.
        limit_bytes: The most that may follow; None is `MAX_FRAME_BYTES`.

    Raises:
        FrameError: There are more. Nothing has been read or allocated for them.
    """
    (length,) = PREFIX.unpack(prefix)
    limit_bytes = MAX_FRAME_BYTES if limit_bytes is None else limit_bytes
    if length > limit_bytes:
        raise FrameError(f"A frame of {length} bytes is longer than {limit_bytes} bytes.")
    return int(length)


def read_frame(stream: IO[bytes], limit_bytes: int | None = None) -> bytes | None:
    """Return the data of the next frame; None when the other side ended before the frame did.

    Raises:
        FrameError: The frame is longer than `limit_bytes`.
    """
    prefix = stream.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    length = frame_length(prefix, limit_bytes)
    data = stream.read(length)
    return data if len(data) == length else None


async def read_frame_async(stream: asyncio.StreamReader) -> bytes:
    """Return the data of the next frame.

    Raises:
        EOFError: The other side ended before the frame did.
        FrameError: The frame is longer than `MAX_FRAME_BYTES`.
    """
    return await stream.readexactly(frame_length(await stream.readexactly(PREFIX.size)))


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a child at once and reap it; what it has not said is lost."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


async def stop_async(process: asyncio.subprocess.Process, deadline_s: float) -> None:
    """Ask a child to end by closing its standard input, kill it when it does not, and reap it."""
    import asyncio

    assert process.stdin is not None, "`start_async` gives it a pipe"
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), deadline_s)
    except asyncio.TimeoutError:
        pass  # it is killed
    finally:
        # also when this wait is cancelled: the server must not end before its child
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _command(entry: str) -> list[str]:
    """Return the command of a child: isolated from environment and working directory, but with our modules' places."""
    module, _, function = entry.partition(":")
    places = json.dumps([place for place in sys.path if place])
    return [sys.executable, "-I", "-c", _RUN, places, module, function]
