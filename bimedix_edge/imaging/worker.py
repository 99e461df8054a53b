"""The process that decodes pictures whose formats or codecs could crash, hang or exhaust the memory.

It reads two frames for a request, the message and the picture's file, and writes two frames for a reply, the message
and the pixels. Its memory is limited, it prints nothing, and it ends when it has been idle for a while or its parent
is gone.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import IO, Annotated, Any

import msgspec
import numpy as np

from bimedix_edge import child
from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.imaging.decoded import MAX_PIXELS, Decoded
from bimedix_edge.imaging.window import Window

__all__ = [
    "IDLE_S",
    "DecodeRequest",
    "DecodedReply",
    "OverLimit",
    "Refused",
    "SeriesReply",
    "SeriesRequest",
    "main",
    "pack_message",
    "unpack_reply",
]

IDLE_S = 20.0
# on top of what the libraries take (about 80 MB) and of two copies of the file
_MEMORY_BYTES = 480 << 20
_MAX_INT = (1 << 63) - 1
Count = Annotated[int, msgspec.Meta(ge=0)]


class DecodeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="decode"):
    """A picture to decode; its file is the next frame.

    Attributes:
        format: `dicom`, or the name of a raster format.
        name: What error messages call the picture.
        frame: Which frame of a DICOM file, from 1, or `middle`.
        window: The window for a DICOM file; None is the file's own.
    """

    format: str
    name: str
    frame: int | str = "middle"
    window: Window | None = None


class SeriesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="series"):
    """Files whose DICOM headers are wanted; paths are bytes, since they need not be Unicode."""

    paths: tuple[bytes, ...]


class DecodedReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="decoded"):
    """A decoded picture; the message holds the shape of its pixels, and the next frame the pixels."""

    decoded: Decoded


class SeriesReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="series"):
    """What `dicom_series.describe_files` returns, with paths as bytes."""

    files: list[dict[str, Any]]
    n_unreadable: Count


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """The decoder refused the picture with an error of ours.

    Attributes:
        kind: Name of the error's class.
        message: Its sentence.
    """

    kind: str
    message: str


class OverLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="over_limit"):
    """Decoding the picture would take more memory than the process may have."""

    limit_bytes: Count


Request = DecodeRequest | SeriesRequest
Reply = DecodedReply | SeriesReply | Refused | OverLimit


def pack_message(message: Request | Reply) -> bytes:
    """Return a message as MessagePack; of an array it holds the shape alone."""
    return msgspec.msgpack.encode(message, enc_hook=_plain)


def unpack_reply(message: bytes, pixels: bytes) -> Reply:
    """Return a reply whose picture has these pixels.

    Raises:
        FrameError: The message is malformed, or its shape does not fit the pixels.
    """

    def array(kind: type, shape: Any) -> Any:
        height, width, *colours = msgspec.convert(shape, tuple[Count, ...])
        if colours not in ([], [3]) or height * width > MAX_PIXELS:
            raise ValueError("a shape that no picture has")
        return np.frombuffer(pixels, np.uint8).reshape(height, width, *colours)

    try:
        return msgspec.msgpack.decode(message, type=Reply, dec_hook=array)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise child.FrameError(f"A reply of the decoder is malformed ({type(error).__name__}).") from None


def main() -> None:
    """Answer requests until there are no more."""
    requests, replies = child.silence()
    # for downloads of its own pydicom imports requests, and with it what opens a socket at once, to look for IPv6
    sys.modules["requests"] = None  # type: ignore[assignment]  # what the import system takes for a module to refuse
    while (message := _next_message(requests)) is not None and (data := child.read_frame(requests)) is not None:
        reply, pixels = _answer(msgspec.msgpack.decode(message, type=Request), data)
        try:
            for part in (_packed(reply), pixels):
                replies.writelines(child.frame(part))
            replies.flush()
        except BrokenPipeError:  # the parent has ended or given up
            return


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} has no place in a message")


def _packed(reply: Reply) -> bytes:
    try:
        return pack_message(reply)
    except (OverflowError, UnicodeEncodeError):
        # of a damaged file: a number of more than 64 bits, or half a character
        return pack_message(Refused("ImageError", "The file's header holds values that cannot be read."))


def _next_message(requests: IO[bytes]) -> bytes | None:
    timer = threading.Timer(IDLE_S, os._exit, (0,))
    timer.daemon = True
    timer.start()
    try:
        return child.read_frame(requests)
    finally:
        timer.cancel()


def _answer(request: Request, data: bytes) -> tuple[Reply, bytes]:
    try:
        if isinstance(request, SeriesRequest):
            return _describe(request), b""
        decoded = _decode(request, data)
    except BimedixEdgeError as error:
        return Refused(type(error).__name__, str(error)), b""
    except (MemoryError, RecursionError):
        return OverLimit(_MEMORY_BYTES), b""
    return DecodedReply(decoded), decoded.pixels.tobytes()


def _describe(request: SeriesRequest) -> SeriesReply:
    from bimedix_edge.imaging.dicom_series import describe_files

    _limit_memory(0)
    files, n_unreadable = describe_files([os.fsdecode(path) for path in request.paths])
    return SeriesReply([_bounded(entry) for entry in files], n_unreadable)


def _bounded(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with its path as bytes, and numbers of a damaged header cut to 64 bits."""
    cut = {
        name: max(-_MAX_INT, min(value, _MAX_INT)) if isinstance(value, int) else value for name, value in entry.items()
    }
    return {**cut, "path": os.fsencode(entry["path"])}


def _decode(request: DecodeRequest, data: bytes) -> Decoded:
    # imported here, so that a raster does not wait for pydicom, nor a DICOM file for Pillow
    if request.format == "dicom":
        from bimedix_edge.imaging.dicom import decode_dicom

        _limit_memory(len(data))
        return decode_dicom(data, request.name, request.frame, request.window)
    from bimedix_edge.imaging.raster import decode_raster

    _limit_memory(len(data))
    return decode_raster(data, request.name, request.format)


def _limit_memory(file_bytes: int) -> None:
    """Let the address space grow by a limit from here; only Linux enforces it, elsewhere the time limit remains."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + _MEMORY_BYTES + 2 * file_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
