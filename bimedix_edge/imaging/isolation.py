"""Decoding in a process of its own: a codec that crashes, hangs or exhausts the memory costs an error, no more.

Starting the process takes a third of a second, so it stays for the pictures that follow, and ends by itself when none
come.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

from bimedix_edge import child
from bimedix_edge.errors import BimedixEdgeError, ImageError, UsageError
from bimedix_edge.imaging.decoded import MAX_PIXELS, Decoded
from bimedix_edge.imaging.window import Window
from bimedix_edge.imaging.worker import (
    DecodedReply,
    DecodeRequest,
    OverLimit,
    Refused,
    Reply,
    SeriesReply,
    SeriesRequest,
    pack_message,
    unpack_reply,
)

__all__ = ["IsolatedDecoder", "close_worker", "decode_isolated", "describe_isolated", "worker_pid"]

_SECONDS = 8.0
_SECONDS_PER_BYTE = 1e-6
_SECONDS_PER_PATH = 0.05
_MAX_MESSAGE_BYTES = 64 << 20
_Wanted = TypeVar("_Wanted", DecodedReply, SeriesReply)
_KINDS: dict[str, type[BimedixEdgeError]] = {"ImageError": ImageError, "UsageError": UsageError}


class _WorkerError(Exception):
    """The worker gave no usable reply; the argument says why, as the predicate of a sentence about the picture."""


class _Worker:
    """One process, which gets one request at a time."""

    def __init__(self, entry: str) -> None:
        self.process = child.start(entry)
        self.used = False
        self.expired = False

    def ask(self, message: bytes, data: bytes, seconds: float) -> Reply:
        """Return the reply to a request.

        Raises:
            _WorkerError: The process crashed, ran out of time, or had ended before.
        """
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            reply = self._exchange(message, data)
        except child.FrameError:
            reply = None
        finally:
            timer.cancel()
        if reply is None:
            child.kill(self.process)
            raise _WorkerError("takes too long" if self.expired else "makes its decoder crash")
        self.used = True
        return reply

    def _expire(self) -> None:
        self.expired = True
        self.process.kill()

    def _exchange(self, message: bytes, data: bytes) -> Reply | None:
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None and replies is not None, "`child.start` gives both a pipe"
        try:
            for part in (message, data):
                requests.writelines(child.frame(part))
            requests.flush()
        except OSError:  # it has ended; a reply that it may have written is not about this picture
            return None
        reply = child.read_frame(replies, _MAX_MESSAGE_BYTES)
        pixels = child.read_frame(replies, 3 * MAX_PIXELS) if reply is not None else None
        return None if reply is None or pixels is None else unpack_reply(reply, pixels)


class IsolatedDecoder:
    """Keeps a worker, and starts another when there is none; safe to use from several threads.

    Args:
        entry: What the worker runs; see `child.start`.
        seconds: How long a small picture may take.
    """

    def __init__(self, entry: str = "bimedix_edge.imaging.worker:main", seconds: float = _SECONDS) -> None:
        self._entry = entry
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    @property
    def pid(self) -> int | None:
        """Return the number of the worker's process; None while there is none."""
        worker = self._worker
        return None if worker is None else worker.process.pid

    def decode(self, request: DecodeRequest, data: bytes) -> Decoded:
        """Return a picture, decoded in the worker.

        Raises:
            ImageError, UsageError: The decoder refuses the picture, crashed, took too long, or needs too much memory.
        """
        seconds = self._seconds + _SECONDS_PER_BYTE * len(data)
        return self._ask(pack_message(request), data, request.name, seconds, DecodedReply).decoded

    def describe(self, paths: Sequence[str], name: str) -> tuple[list[dict[str, Any]], int]:
        """Return what `dicom_series.describe_files` finds in the headers of files.

        Raises:
            ImageError: The worker took too long or crashed.
        """
        message = pack_message(SeriesRequest(tuple(map(os.fsencode, paths))))
        reply = self._ask(message, b"", name, self._seconds + _SECONDS_PER_PATH * len(paths), SeriesReply)
        return [{**entry, "path": os.fsdecode(entry["path"])} for entry in reply.files], reply.n_unreadable

    def close(self) -> None:
        """End the worker, if there is one; the next picture starts another."""
        with self._lock:
            if self._worker is not None:
                child.kill(self._worker.process)
                self._worker = None

    def _ask(self, message: bytes, data: bytes, name: str, seconds: float, wanted: type[_Wanted]) -> _Wanted:
        with self._lock:
            try:
                reply = self._reply(message, data, seconds)
            except _WorkerError as error:
                raise ImageError(
                    f"{name} {error}, so decoding was given up. The file may be damaged: export it again."
                ) from error
        if isinstance(reply, wanted):
            return reply
        if isinstance(reply, OverLimit):
            raise ImageError(f"{name} needs more than {reply.limit_bytes >> 20} MiB to decode. Export it smaller.")
        if isinstance(reply, Refused):
            raise _KINDS.get(reply.kind, ImageError)(reply.message)
        raise ImageError(f"{name} confuses its decoder. The file may be damaged: export it again.")

    def _reply(self, message: bytes, data: bytes, seconds: float) -> Reply:
        """Ask the worker, or another one if that had ended since its last picture."""
        while True:
            worker, self._worker = self._worker or _Worker(self._entry), None
            try:
                reply = worker.ask(message, data, seconds)
            except _WorkerError:
                if not worker.used or worker.expired:
                    raise
            except BaseException:
                # Ctrl-C in the middle of a reply: what is left in the pipe belongs to no request
                child.kill(worker.process)
                raise
            else:
                self._worker = worker
                return reply


_decoder = IsolatedDecoder()


def decode_isolated(
    work: str, data: bytes, name: str, *, frame: int | str = "middle", window: Sequence[Any] | None = None
) -> Decoded:
    """Return a picture, decoded in the process that all pictures share.

    Args:
        work: `dicom`, or the name of a raster format.
        data: The whole file.
        name: What error messages call the picture.
        frame: Which frame of a DICOM file, from 1, or `middle`.
        window: The fields of a `Window` for a DICOM file; None is the file's own.

    Raises:
        ImageError, UsageError: See `IsolatedDecoder.decode`.
    """
    # a file's name need not be Unicode, and a message is
    shown = name.encode("utf-8", "backslashreplace").decode()
    return _decoder.decode(DecodeRequest(work, shown, frame, Window(*window) if window else None), data)


def describe_isolated(paths: list[str], name: str) -> tuple[list[dict[str, Any]], int]:
    """Return what `dicom_series.describe_files` finds in the headers of files.

    Raises:
        ImageError: The worker took too long or crashed.
    """
    return _decoder.describe(paths, name)


def worker_pid() -> int | None:
    """Return the number of the process that decodes pictures; None while there is none."""
    return _decoder.pid


def close_worker() -> None:
    """End the process that decodes pictures, if there is one; the next picture starts another."""
    _decoder.close()


atexit.register(close_worker)
