"""Workers that break, each in its way, in place of the one that decodes pictures."""

from __future__ import annotations

import os
import time

from bimedix_edge import child
from bimedix_edge.imaging.worker import DecodedReply, SeriesReply, pack_message

# each way, and what the error says of the picture
BROKEN = {
    "crash": "makes its decoder crash",
    "write_no_frame": "makes its decoder crash",
    "announce_too_much": "makes its decoder crash",
    "write_no_message": "makes its decoder crash",
    "write_another_shape": "makes its decoder crash",
    "answer_something_else": "confuses its decoder",
}


def _reply(message: bytes, pixels: bytes = b"") -> None:
    requests, replies = child.silence()
    child.read_frame(requests)
    child.read_frame(requests)
    for part in (message, pixels):
        replies.writelines(child.frame(part))
    replies.flush()
    time.sleep(100)


def crash() -> None:
    requests, _ = child.silence()
    child.read_frame(requests)
    os.abort()


def hang() -> None:
    time.sleep(100)


def write_no_frame() -> None:
    os.write(1, b"a codec's warning\n" * 9)
    time.sleep(100)


def announce_too_much() -> None:
    os.write(1, child.PREFIX.pack(1 << 40))
    time.sleep(100)


def write_no_message() -> None:
    _reply(b"\xc1")


def write_another_shape() -> None:
    import numpy as np

    from bimedix_edge.imaging.decoded import Decoded

    _reply(pack_message(DecodedReply(Decoded(np.zeros((3, 4), np.uint8)))), b"\0" * 11)


def answer_something_else() -> None:
    _reply(pack_message(SeriesReply([], 0)))
