"""Frames between the server's two processes: a type for each kind, sent as MessagePack and decoded strictly. No pickle.

Files are bytes within a frame. A frame that is malformed, or longer than any request can be, is a `FrameError`, so
neither side trusts the other with its memory or with names of code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bimedix_edge import child
from bimedix_edge.child import FrameError
from bimedix_edge.events import Done, Encode, Prefill, Token
from bimedix_edge.server.link.messages import (
    Count,
    Failed,
    GenerateRequest,
    ImagePart,
    ImagePreview,
    ModelFacts,
    ServerEvent,
)
from bimedix_edge.settings import Settings

__all__ = [
    "CancelRequest",
    "Cells",
    "CountCells",
    "Detokenize",
    "DetokenizedText",
    "ErrorReply",
    "EventFrame",
    "Frame",
    "Generate",
    "ModelReady",
    "ModelRefused",
    "OpenModel",
    "Preview",
    "PreviewReply",
    "ReplyFrame",
    "RequestFrame",
    "TokenIds",
    "Tokenize",
    "UnsendableText",
    "event_frame",
    "event_frame_types",
    "pack",
    "unpack_reply",
    "unpack_request",
]


class UnsendableText(FrameError):
    """A text holds half of a surrogate pair, which UTF-8 has no bytes for."""


class Frame(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every frame has: the number of the request that it belongs to, or 0."""

    id: Count


class OpenModel(Frame, frozen=True, tag="open"):
    """Load a model.

    Attributes:
        model: A bundle's directory or its name in the store, as bytes, since a path need not be Unicode; None is the
            settings' model.
        settings: Settings of the runtime.
    """

    model: bytes | None
    settings: Settings


class Generate(Frame, frozen=True, tag="generate"):
    """Answer a request."""

    request: GenerateRequest


class CancelRequest(Frame, frozen=True, tag="cancel"):
    """Stop answering a request."""


class Tokenize(Frame, frozen=True, tag="tokenize"):
    """Ask for the tokens of plain text."""

    text: str


class Detokenize(Frame, frozen=True, tag="detokenize"):
    """Ask for the text of tokens."""

    tokens: tuple[int, ...]


class Preview(Frame, frozen=True, tag="preview"):
    """Ask what the model sees of an image."""

    image: ImagePart


class CountCells(Frame, frozen=True, tag="count_cells"):
    """Ask how many cells of the KV cache are in use."""


class ModelReady(Frame, frozen=True, tag="ready"):
    """The model is loaded."""

    facts: ModelFacts


class ModelRefused(Frame, frozen=True, tag="refused"):
    """The model cannot be loaded: the class of the error, and its sentence."""

    error: str
    message: str


class EncodeEvent(Frame, frozen=True, tag="encode"):
    """An image is about to be encoded, or has been."""

    event: Encode


class PrefillEvent(Frame, frozen=True, tag="prefill"):
    """A chunk of the prompt has been prefilled."""

    event: Prefill


class TokenEvent(Frame, frozen=True, tag="token"):
    """A token of the answer has been decoded."""

    event: Token


class DoneEvent(Frame, frozen=True, tag="done"):
    """The answer is complete."""

    event: Done


class FailedEvent(Frame, frozen=True, tag="failed"):
    """The request failed."""

    event: Failed


class TokenIds(Frame, frozen=True, tag="token_ids"):
    """Replies to `Tokenize`."""

    tokens: tuple[Count, ...]


class DetokenizedText(Frame, frozen=True, tag="text"):
    """Replies to `Detokenize`."""

    text: str


class PreviewReply(Frame, frozen=True, tag="preview"):
    """Replies to `Preview`."""

    preview: ImagePreview


class Cells(Frame, frozen=True, tag="cells"):
    """Replies to `CountCells`."""

    n_used: Count


class ErrorReply(Frame, frozen=True, tag="error"):
    """Replies to any of them: the class of the error, and its sentence."""

    error: str
    message: str


RequestFrame = OpenModel | Generate | CancelRequest | Tokenize | Detokenize | Preview | CountCells
EventFrame = EncodeEvent | PrefillEvent | TokenEvent | DoneEvent | FailedEvent
ReplyFrame = ModelReady | ModelRefused | EventFrame | TokenIds | DetokenizedText | PreviewReply | Cells | ErrorReply

event_frame_types = (EncodeEvent, PrefillEvent, TokenEvent, DoneEvent, FailedEvent)
_EVENT_FRAMES: dict[type, Any] = {
    Encode: EncodeEvent,
    Prefill: PrefillEvent,
    Token: TokenEvent,
    Done: DoneEvent,
    Failed: FailedEvent,
}


def event_frame(number: int, event: ServerEvent) -> EventFrame:
    """Return the frame of an event.

    Args:
        number: The request's.
        event: Any event but `Queued`, which the parent makes itself.
    """
    frame: EventFrame = _EVENT_FRAMES[type(event)](number, event)
    return frame


def pack(frame: RequestFrame | ReplyFrame) -> list[bytes]:
    """Return a frame as pieces to write one after the other.

    Raises:
        FrameError: It is too long, or holds a number of more than 64 bits.
        UnsendableText: It holds a text that is not valid Unicode.
    """
    try:
        data = msgspec.msgpack.encode(frame, enc_hook=_plain)
    except OverflowError:
        raise FrameError("A number in the frame has more than 64 bits.") from None
    except UnicodeEncodeError:
        raise UnsendableText("The text is not valid Unicode (it holds half of a surrogate pair).") from None
    return child.frame(data)


def unpack_request(data: bytes) -> RequestFrame:
    """Return the frame that the parent sent.

    Raises:
        FrameError: It is malformed.
    """
    frame: RequestFrame = _unpack(data, RequestFrame)
    return frame


def unpack_reply(data: bytes) -> ReplyFrame:
    """Return the frame that the child sent.

    Raises:
        FrameError: It is malformed.
    """
    frame: ReplyFrame = _unpack(data, ReplyFrame)
    return frame


def _unpack(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_path)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # without the exception's text, which could hold what a user wrote
        raise FrameError(f"A frame of {len(data)} bytes is malformed ({type(error).__name__}).") from None


def _plain(value: Any) -> bytes:
    # a path need not be Unicode
    if isinstance(value, Path):
        return os.fsencode(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in a frame")


def _path(kind: type, value: Any) -> Path:
    if kind is not Path or not isinstance(value, bytes):
        raise ValueError("not a path")
    return Path(os.fsdecode(value))
