"""Frames between the server's two processes: a line of lengths, a header in JSON, then raw bytes. No pickle.

    4 bytes   length of the header, little-endian
    8 bytes   length of the blobs together
    header    {"kind": …, "id": …, "value": …, "sizes": [length of each blob]} in UTF-8
    blobs     one after the other

A value is made of the dataclasses in `messages`, `events` and `sampling`, tuples, dicts with names as keys, and
scalars. A dataclass is `{"is": its name, "of": {its fields}}`, a dict `{"map": {…}}`, bytes are `{"blob": its place in
sizes}`, or where they are few, such as those of a token, `{"hex": …}`. What does not fit into that is a `WireError`, as
is a frame that is longer than any request can be; so neither side trusts the other with its memory or with names of
code.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from bimedix_edge import events, sampling
from bimedix_edge.server.link import messages

__all__ = ["MAX_BLOB_BYTES", "MAX_HEADER_BYTES", "PREFIX", "Frame", "WireError", "lengths", "pack", "unpack"]

PREFIX = struct.Struct("<IQ")
MAX_HEADER_BYTES = 64 << 20
# sixteen files of the largest size that `imaging` reads would be 8 GiB; no server should hold that for one request
MAX_BLOB_BYTES = 1 << 30
_INLINE_BYTES = 64
_KNOWN: dict[str, type] = {
    kind.__name__: kind
    for module in (events, messages, sampling)
    for kind in vars(module).values()
    if isinstance(kind, type) and is_dataclass(kind)
}


class WireError(Exception):
    """Bytes that are no frame, or a frame that is too long; the processes cannot go on talking."""


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        kind: what is asked or answered.
        id: of the request that it belongs to; 0 is none.
        value: see the module's text.
    """

    kind: str
    id: int = 0
    value: Any = None


def pack(frame: Frame) -> list[bytes]:
    """Return a frame as pieces to be written one after the other.

    Raises:
        WireError: it is too long.
    """
    blobs: list[bytes] = []
    value = _encode(frame.value, blobs)
    header = {"kind": frame.kind, "id": frame.id, "value": value, "sizes": [len(blob) for blob in blobs]}
    text = json.dumps(header, separators=(",", ":")).encode()
    prefix = PREFIX.pack(len(text), sum(map(len, blobs)))
    lengths(prefix)
    return [prefix, text, *blobs]


def lengths(prefix: bytes) -> tuple[int, int]:
    """Return how many bytes of header and of blobs follow a prefix of `PREFIX.size` bytes.

    Raises:
        WireError: more than any frame has.
    """
    n_header, n_blobs = PREFIX.unpack(prefix)
    if n_header > MAX_HEADER_BYTES or n_blobs > MAX_BLOB_BYTES:
        raise WireError(f"a frame of {n_header} and {n_blobs} bytes is longer than any should be")
    return n_header, n_blobs


def unpack(header: bytes, blobs: bytes) -> Frame:
    """Return the frame that a header and the bytes after it are.

    Raises:
        WireError: they are none.
    """
    try:
        head = json.loads(header)
        sizes, parts, at = head["sizes"], [], 0
        for size in sizes:
            parts.append(blobs[at : at + size])
            at += size
        if at != len(blobs) or any(len(part) != size for part, size in zip(parts, sizes, strict=True)):
            raise WireError("the blobs of a frame are not as long as it says")
        return Frame(str(head["kind"]), int(head["id"]), _decode(head["value"], parts))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        # without the exception's text, which could hold what a user wrote
        raise WireError(f"a frame of {len(header)} bytes does not parse ({type(error).__name__})") from None


def _encode(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, bytes):
        if len(value) <= _INLINE_BYTES:
            return {"hex": value.hex()}
        blobs.append(value)
        return {"blob": len(blobs) - 1}
    if is_dataclass(value):
        name = type(value).__name__
        return {"is": name, "of": {item.name: _encode(getattr(value, item.name), blobs) for item in fields(value)}}
    if isinstance(value, dict):
        return {"map": {name: _encode(item, blobs) for name, item in value.items()}}
    if isinstance(value, (tuple, list)):
        return [_encode(item, blobs) for item in value]
    return value


def _decode(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, blobs) for item in value)
    if not isinstance(value, dict):
        return value
    if "is" in value:
        return _KNOWN[value["is"]](**{name: _decode(item, blobs) for name, item in value["of"].items()})
    if "map" in value:
        return {name: _decode(item, blobs) for name, item in value["map"].items()}
    return bytes.fromhex(value["hex"]) if "hex" in value else blobs[value["blob"]]
