"""The process in which pictures are decoded whose formats or codecs could crash, hang or eat the memory.

It reads requests from standard input and answers on standard output: a line of JSON, then bytes. It has a limit on its
memory, says nothing on standard error, and ends by itself when it is left alone, or when its parent is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from typing import IO, Any

import msgspec

__all__ = ["IDLE_S", "main"]

IDLE_S = 20.0
# on top of what the libraries take (about 80 MB) and of two copies of the file
_MEMORY_BYTES = 480 << 20


def main() -> None:
    """Answer requests until there are no more."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    # a codec that prints must not print into an answer, nor show a file's content on the terminal
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    warnings.simplefilter("ignore")
    # for downloads of its own pydicom imports requests, and with it what opens a socket at once, to look for IPv6
    sys.modules["requests"] = None  # type: ignore[assignment]  # what the import system takes for a module to refuse
    while line := _next_line(requests):
        request = json.loads(line)
        data = requests.read(request["size"])
        if len(data) < request["size"]:
            return
        answer, pixels = _answer(request, data)
        try:
            answers.write(json.dumps(answer).encode() + b"\n" + pixels)
            answers.flush()
        except BrokenPipeError:  # the parent has gone or given up
            return


def _next_line(requests: IO[bytes]) -> bytes:
    timer = threading.Timer(IDLE_S, os._exit, (0,))
    timer.daemon = True
    timer.start()
    try:
        return requests.readline()
    finally:
        timer.cancel()


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    from bimedix_edge.errors import BimedixEdgeError

    try:
        return _work(request, data)
    except BimedixEdgeError as error:
        return {"error": str(error), "kind": type(error).__name__}, b""
    except (MemoryError, RecursionError):
        return {"error": f"needs more than {_MEMORY_BYTES >> 20} MiB to decode", "kind": "limit"}, b""


def _work(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    # imported here, so that a picture does not wait for pydicom, nor a DICOM file for Pillow
    if request["work"] == "series":
        from bimedix_edge.imaging.dicom_series import describe_files

        _limit_memory(0)
        files, n_unreadable = describe_files(request["paths"])
        return {"files": files, "n_unreadable": n_unreadable}, b""
    if request["work"] == "dicom":
        from bimedix_edge.imaging.dicom import decode_dicom
        from bimedix_edge.imaging.window import Window

        window = Window(*request["window"]) if request["window"] else None
        _limit_memory(len(data))
        decoded = decode_dicom(data, request["name"], request["frame"], window)
    else:
        from bimedix_edge.imaging.raster import decode_raster

        _limit_memory(len(data))
        decoded = decode_raster(data, request["name"], request["work"])
    described = {
        "shape": decoded.pixels.shape,
        "notes": msgspec.to_builtins(decoded.notes),
        "warnings": msgspec.to_builtins(decoded.warnings),
        "tags": decoded.tags,
        "n_frames": decoded.n_frames,
    }
    return described, decoded.pixels.tobytes()


def _limit_memory(size_bytes: int) -> None:
    """Let the address space grow by so much from here; only Linux keeps to it, elsewhere the time limit remains."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + _MEMORY_BYTES + 2 * size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
