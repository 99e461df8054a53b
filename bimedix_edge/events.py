"""What happens while an answer is made, as values: `Encode`, `Prefill`, `Token`, then one `Done`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Cancel",
    "Chance",
    "Done",
    "Encode",
    "Event",
    "ImageUse",
    "Prefill",
    "StopReason",
    "Timings",
    "Token",
    "Usage",
]

StopReason = Literal["end", "stop", "max_tokens", "context", "cancelled"]


class Cancel:
    """A way to stop an answer from a signal handler or another thread."""

    def __init__(self) -> None:
        self._flag = threading.Event()

    def cancel(self) -> None:
        """Ask the answer to stop; it ends with a `Done` whose stop_reason is `cancelled`."""
        self._flag.set()

    @property
    def cancelled(self) -> bool:
        """Return whether `cancel` was called."""
        return self._flag.is_set()


@dataclass(frozen=True)
class ImageUse:
    """One image of a prompt.

    Attributes:
        sha256: of the file's bytes, or of the pixels where there was no file.
        width_px, height_px: of the picture as it was given.
        cached: whether it was not encoded for this answer.
    """

    sha256: str
    width_px: int
    height_px: int
    cached: bool


@dataclass(frozen=True)
class Usage:
    """Positions of the context: all of the prompt, what of it was reused from before, and those written."""

    prompt: int
    reused: int
    generated: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in milliseconds.

    Attributes:
        encode: waiting for images to become embeddings.
        prefill: reading the prompt, embeddings included.
        first_token: from the request to the first token of the answer; 0 when there was none.
        decode: from the first token to the last.
    """

    encode: float
    prefill: float
    first_token: float
    decode: float


@dataclass(frozen=True)
class Encode:
    """An image is about to be encoded (`done` false) or has been; `image` counts from 0."""

    image: int
    n_images: int
    done: bool


@dataclass(frozen=True)
class Prefill:
    """`n_done` of the prompt's `n_total` positions are in the context, `n_reused` of them from before."""

    n_done: int
    n_total: int
    n_reused: int


@dataclass(frozen=True)
class Chance:
    """How likely a token was.

    Attributes:
        id: of the token.
        raw: its bytes, which may be part of a UTF-8 character; special tokens have none.
        logprob: natural logarithm of its probability before temperature and the other samplers.
    """

    id: int
    raw: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token of the answer.

    Attributes:
        id: of the token.
        text: what is certain with it: nothing while a UTF-8 character is incomplete, or while the end of the text could
            be the beginning of a stop text; later tokens, or `Done`, then bring it.
        chance: of this token, where probabilities were asked for.
        top: of the most likely ones, likewise.
    """

    id: int
    text: str
    chance: Chance | None = None
    top: tuple[Chance, ...] = ()


@dataclass(frozen=True)
class Done:
    """The answer is complete.

    Attributes:
        text: all of it.
        token_ids: its tokens, without the one that ended it.
        stop_reason: `end` (the model ended its turn), `stop` (a stop text came, which is left out), `max_tokens`,
            `context` (full) or `cancelled`.
        usage, images, timings: see there.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    usage: Usage
    images: tuple[ImageUse, ...]
    timings: Timings


Event = Encode | Prefill | Token | Done
