"""Decoding in a process of its own: a codec that crashes, hangs or asks for too much memory costs an error, no more.

Starting one takes a third of a second, so it is kept for the pictures that follow, and ends by itself when none come.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from typing import Any

import msgspec
import numpy as np

from bimedix_edge.errors import BimedixEdgeError, ImageError, UsageError
from bimedix_edge.imaging.decoded import Decoded
from bimedix_edge.imaging.notes import Note

__all__ = ["close_worker", "decode_isolated", "describe_isolated"]

_SECONDS = 8.0
_SECONDS_PER_BYTE = 1e-6
_LONGEST_LINE = 64 << 20
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from bimedix_edge.imaging.worker import main; main()"
_KINDS: dict[str, type[BimedixEdgeError]] = {"ImageError": ImageError, "UsageError": UsageError}


class _Died(Exception):
    """The worker ended without an answer; the argument says how."""


class _Worker:
    """One process, asked one thing at a time."""

    def __init__(self) -> None:
        # isolated from the environment and the working directory, but with our modules' places
        self._process = subprocess.Popen(  # noqa: S603  this very Python
            [sys.executable, "-I", "-c", _START, json.dumps([place for place in sys.path if place])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.used = False

    def ask(self, request: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Return the answer: what it says, and its bytes.

        Raises:
            _Died: the process crashed, was killed for its time, or had ended before.
        """
        expired = threading.Event()
        timer = threading.Timer(seconds, self._expire, (expired,))
        timer.daemon = True
        timer.start()
        try:
            answer = self._exchange(request, data)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            raise _Died("takes too long" if expired.is_set() else "makes its decoder crash")
        self.used = True
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        self._process.kill()

    def _exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes] | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({**request, "size": len(data)}).encode() + b"\n")
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:  # it has ended; what it may have said is not about this picture
            return None
        line = self._process.stdout.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, Any] = json.loads(line)
        size = int(np.prod(answer["shape"])) if "shape" in answer else 0
        pixels = self._process.stdout.read(size)
        return (answer, pixels) if len(pixels) == size else None


_lock = threading.Lock()
_workers: list[_Worker] = []


def decode_isolated(work: str, data: bytes, name: str, **options: Any) -> Decoded:
    """Decode a picture in the worker.

    Args:
        work: `dicom`, or the name of a raster format.
        data: the whole file.
        name: what messages call it.
        options: `frame` and `window` of a DICOM file.

    Raises:
        ImageError, UsageError: as the decoder's, or the decoder crashed, took too long, or needs too much memory.
    """
    seconds = _SECONDS + _SECONDS_PER_BYTE * len(data)
    answer, pixels = _ask({"work": work, "name": name, **options}, data, name, seconds)
    return Decoded(
        np.frombuffer(pixels, np.uint8).reshape(answer["shape"]),
        msgspec.convert(answer["notes"], tuple[Note, ...]),
        msgspec.convert(answer["warnings"], tuple[Note, ...]),
        dict(answer["tags"]),
        int(answer["n_frames"]),
    )


def describe_isolated(paths: list[str], name: str) -> tuple[list[dict[str, Any]], int]:
    """Return what `dicom_series.describe_files` finds in the headers of files.

    Raises:
        ImageError: it took too long or crashed.
    """
    answer, _ = _ask({"work": "series", "paths": paths}, b"", name, _SECONDS + 0.05 * len(paths))
    return answer["files"], int(answer["n_unreadable"])


def close_worker() -> None:
    """End the process, if there is one; the next picture starts another."""
    with _lock:
        while _workers:
            _workers.pop().close()


def _ask(request: dict[str, Any], data: bytes, name: str, seconds: float) -> tuple[dict[str, Any], bytes]:
    with _lock:
        answer, pixels = _answer(request, data, name, seconds)
    if "error" not in answer:
        return answer, pixels
    if answer["kind"] == "limit":
        raise ImageError(f"Expected a picture of usual size, but {name} {answer['error']}; export it smaller.")
    raise _KINDS[answer["kind"]](answer["error"])


def _answer(request: dict[str, Any], data: bytes, name: str, seconds: float) -> tuple[dict[str, Any], bytes]:
    """Ask the worker that is there, and a new one if that had ended since it was last used."""
    while True:
        worker = _workers.pop() if _workers else _Worker()
        try:
            answer = worker.ask(request, data, seconds)
        except _Died as how:
            if worker.used and str(how) != "takes too long":
                continue
            raise ImageError(
                f"Expected a whole picture, but {name} {how}, so it was given up; export it again."
            ) from how
        except BaseException:
            # Ctrl-C in the middle of an answer: what is left in the pipe belongs to no question
            worker.close()
            raise
        _workers.append(worker)
        return answer


atexit.register(close_worker)
