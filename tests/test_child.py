"""A process of ours: it finds our modules, its frames stay clean, and Ctrl-C is its parent's to handle."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from bimedix_edge import child
from bimedix_edge.child import MAX_FRAME_BYTES, PREFIX, FrameError, frame, frame_length, read_frame


def echo() -> None:
    """Answer frames with themselves, while everything that native code may do to standard output happens."""
    requests, replies = child.silence()
    os.write(1, b"printed by native code")
    os.write(2, b"printed by native code")
    print("printed by Python", flush=True)
    while (data := read_frame(requests)) is not None:
        replies.writelines(frame(data))
        replies.flush()


def describe() -> None:
    """Answer one frame: what the process inherited."""
    _, replies = child.silence()
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")] if sys.platform == "linux" else []
    replies.writelines(
        frame(json.dumps({"path": sys.path, "isolated": sys.flags.isolated, "fds": descriptors}).encode())
    )
    replies.flush()


def stay() -> None:
    """Outlast the parent's request to end."""
    time.sleep(100)


ENTRY = "test_child"


def test_what_a_child_prints_is_in_no_frame() -> None:
    process = child.start(f"{ENTRY}:echo")
    assert process.stdin is not None and process.stdout is not None
    for data in (b"", b"x", bytes(range(256)) * 4096):
        process.stdin.writelines(frame(data))
        process.stdin.flush()
        assert read_frame(process.stdout) == data
    if sys.platform != "win32":
        process.send_signal(signal.SIGINT)
    process.stdin.writelines(frame(b"after Ctrl-C"))
    process.stdin.flush()
    assert read_frame(process.stdout) == b"after Ctrl-C"
    process.stdin.close()
    assert process.wait(30) == 0
    child.kill(process)  # one that has ended already is fine


def test_a_child_has_our_places_and_no_handle_of_ours() -> None:
    held = [os.open(__file__, os.O_RDONLY) for _ in range(9)]
    for descriptor in held:
        os.set_inheritable(descriptor, True)
    process = child.start(f"{ENTRY}:describe")
    assert process.stdout is not None
    described = json.loads(read_frame(process.stdout) or b"")
    for descriptor in held:
        os.close(descriptor)
    assert process.wait(30) == 0
    child.kill(process)
    assert described["path"] == [place for place in sys.path if place]
    assert described["isolated"] == 1
    # 0 to 2 lead nowhere, two are the pipes, one lists the folder
    assert len(described["fds"]) <= 6


def test_a_child_that_does_not_end_is_killed() -> None:
    async def check() -> float:
        process = await child.start_async(f"{ENTRY}:stay")
        start_s = time.monotonic()
        await child.stop_async(process, 0.3)
        assert process.returncode is not None and process.returncode != 0
        return time.monotonic() - start_s

    assert 0.3 <= asyncio.run(check()) < 10


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    class Counting(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.asked += size or 0
            return super().read(size)

    for length, limit in ((MAX_FRAME_BYTES + 1, None), (1 << 63, None), (101, 100)):
        stream = Counting(PREFIX.pack(length) + b"x" * 200)
        with pytest.raises(FrameError, match="longer"):
            read_frame(stream, limit)
        assert stream.asked == PREFIX.size
    assert frame_length(PREFIX.pack(MAX_FRAME_BYTES)) == MAX_FRAME_BYTES


@pytest.mark.parametrize("sent", [b"", PREFIX.pack(5)[:7], PREFIX.pack(5) + b"1234"])
def test_a_stream_that_ends_within_a_frame_has_none(sent: bytes) -> None:
    assert read_frame(io.BytesIO(sent)) is None

    async def check() -> None:
        stream = asyncio.StreamReader()
        stream.feed_data(sent)
        stream.feed_eof()
        with pytest.raises(EOFError):
            await child.read_frame_async(stream)

    asyncio.run(check())


def test_children_are_started_here_alone() -> None:
    """Both processes of ours go through this file: nothing else in the package starts one with pipes."""
    package = Path(child.__file__).parent
    starting = {"Popen", "create_subprocess_exec", "create_subprocess_shell", "fork", "posix_spawn"}
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in starting
    }
    assert users == {"child.py"}
