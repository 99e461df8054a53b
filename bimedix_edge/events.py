"""What happens while an answer is generated, as values: `Encode`, `Prefill`, `Token`, then one `Done`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Cancel",
    "Done",
    "Encode",
    "Event",
    "ImageUse",
    "Logprob",
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
        """Stop the answer; it ends with a `Done` whose stop_reason is `cancelled`."""
        self._flag.set()

    @property
    def cancelled(self) -> bool:
        """Return whether `cancel` was called."""
        return self._flag.is_set()


@dataclass(frozen=True)
class ImageUse:
    """One image of a prompt.

    Attributes:
        sha256: Hash of the file's bytes, or of the pixels where there was no file.
        width_px, height_px: Size of the picture as it was given.
        cached: Whether its embeddings were known, so that this answer did not encode it.
    """

    sha256: str
    width_px: int
    height_px: int
    cached: bool


@dataclass(frozen=True)
class Usage:
    """Positions of the context.

    Attributes:
        prompt: Positions of the whole prompt.
        reused: Positions of the prompt that were in the KV cache from before.
        generated: Tokens of the answer.
    """

    prompt: int
    reused: int
    generated: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in milliseconds.

    Attributes:
        encode: Waiting for the embeddings of images.
        prefill: Evaluating the prompt, embeddings included.
        first_token: From the request to the first token of the answer; 0 when there was none.
        decode: From the first token to the last.
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
class Logprob:
    """The log-probability of a token.

    Attributes:
        id: Id of the token.
        raw: Bytes of the token, which may be part of a UTF-8 character; special tokens have none.
        logprob: Natural logarithm of its probability, before temperature and the other samplers.
    """

    id: int
    raw: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token of the answer.

    Attributes:
        id: Id of the token.
        text: Text that is certain with this token. It is empty while a UTF-8 character is incomplete, or while the end
            of the text could begin a stop text; a later token, or `Done`, then brings it.
        logprob: Log-probability of this token; None unless the options ask for log-probabilities.
        top: Most likely tokens at this place, the best first; empty unless the options ask for them.
    """

    id: int
    text: str
    logprob: Logprob | None = None
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """The answer is complete.

    Attributes:
        text: Text of the whole answer.
        token_ids: Its tokens, without the one that ended it.
        stop_reason: `end` (the model ended its turn), `stop` (a stop text came, which is left out), `max_tokens`,
            `context` (full) or `cancelled`.
        usage: Positions of the context.
        images: Images of the prompt, in order.
        timings: Where the time went.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    usage: Usage
    images: tuple[ImageUse, ...]
    timings: Timings


Event = Encode | Prefill | Token | Done
