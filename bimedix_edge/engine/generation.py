"""The making of one answer, as the scheduler sees it: what of the prompt comes next, and what a token means.

Events go into a queue, so that nobody who reads slowly holds up others; see `answers` for the reader.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.decoder.sampler import Sampler
from bimedix_edge.engine.answer_text import AnswerText
from bimedix_edge.engine.lookahead import Lookahead
from bimedix_edge.engine.sessions import ImageRow, Item, PromptImage, Session
from bimedix_edge.events import (
    Cancel,
    Chance,
    Done,
    Encode,
    Event,
    ImageUse,
    Prefill,
    StopReason,
    Timings,
    Token,
    Usage,
)
from bimedix_edge.sampling import Sampling
from bimedix_edge.vision.encoder import Stop

__all__ = ["Embeds", "Generation", "ImageSource", "Request"]

Embeds = NDArray[np.float32]
_PENALTY_PROMPT_TOKENS = 64
# cells that are kept free for what an answer writes next
_SPARE = 64
# less text than this before an image waits for it: a step of few positions costs as much as of many
_WAITING_TEXT = 64


class ImageSource(Protocol):
    """Where embeddings, float32 (n_tokens, n_embd), come from; `Engine` is one."""

    def known_embeds(self, image: PromptImage) -> Embeds | None:
        """Return an image's embeddings if they are at hand."""

    def encode(self, image: PromptImage, stop: Stop) -> Embeds:
        """Encode an image."""

    def keep(self, image: PromptImage, embeds: Embeds) -> None:
        """Keep what was encoded beyond this process, if that is wanted."""


@dataclass(frozen=True)
class Request:
    """What is asked of the engine.

    Attributes:
        session: whose part of the KV cache is reused and extended.
        prompt: all of it, from the first token on.
        sampling: how tokens are chosen.
        max_tokens: most tokens of the answer, 1 or more.
        cancel: stops it.
        stop: texts that end the answer.
        top_logprobs: how many of the most likely tokens are told with each; None is no probabilities.
    """

    session: Session
    prompt: Sequence[Item]
    sampling: Sampling
    max_tokens: int
    cancel: Cancel
    stop: Sequence[str] = ()
    top_logprobs: int | None = None


class _Shown(NamedTuple):
    """An image of a prompt, and the positions it takes there, `end` not among them."""

    image: PromptImage
    start: int
    end: int


class Generation:
    """One answer; all but `abandon` and `events` belongs to the scheduler's thread once it was submitted.

    Args:
        request: what is asked.
        decoder: that evaluates it.
        images: where embeddings come from.
        wake: called from another thread when an image is encoded.

    Attributes:
        session: of the request.
        events: what happened, in order; the last one is `Done` or an exception.
        retired: set when the scheduler will not touch it again.
        lookahead: the threads that encode its images; set by the reader, who also ends them.
        pending: the token that was sampled last and is not evaluated yet; None while the prompt is read.
        passed_over: steps of other prompts since one of this one's.
    """

    def __init__(self, request: Request, decoder: Decoder, images: ImageSource, wake: Callable[[], None]) -> None:
        self.session = request.session
        self.events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self.retired = threading.Event()
        self.lookahead: Lookahead | None = None
        self.pending: int | None = None
        self.passed_over = 0
        self._request = request
        self._decoder = decoder
        self._source = images
        self._wake = wake
        self._abandoned = False
        self._sampler: Sampler = decoder.sampler(request.sampling)
        self._sampler.accept(item for item in request.prompt[-_PENALTY_PROMPT_TOKENS:] if isinstance(item, int))
        self._shown = _shown(request.prompt)
        self._uses: list[ImageUse] = []
        # by the image's place in the prompt: those that are read or read next
        self._embeds: dict[int, Embeds] = {}
        self._encoding_start_s: dict[int, float] = {}
        self._awaited: int | None = None
        self._n_reused = 0
        self._tokens: list[int] = []
        self._text = AnswerText(request.stop)
        self._start_s = time.perf_counter()
        self._first_token_s: float | None = None
        self._encode_s = self._prefill_s = 0.0

    @property
    def n_prompt(self) -> int:
        """Return how many positions its prompt has."""
        return len(self._request.prompt)

    @property
    def n_unread(self) -> int:
        """Return how many of these are not evaluated yet."""
        return max(0, self.n_prompt - len(self.session.items))

    @property
    def prompt(self) -> Sequence[Item]:
        """Return its prompt."""
        return self._request.prompt

    @property
    def n_spare(self) -> int:
        """Return how many cells it will need next, besides those it has: a few, for an answer may be short."""
        left = self._request.max_tokens - len(self._tokens)
        return max(1, min(left, _SPARE, self._decoder.n_ctx - max(self.n_prompt, len(self.session.items))))

    @property
    def encoding(self) -> bool:
        """Return whether it can only go on when an image is encoded."""
        return self._awaited is not None

    def abandon(self) -> None:
        """Stop it, since nobody reads it any more."""
        self._abandoned = True

    def should_stop(self) -> bool:
        """Tell whether it was cancelled or abandoned."""
        return self._abandoned or self._request.cancel.cancelled

    def begin(self, n_reused: int) -> None:
        """Note that its session has a sequence, which holds `n_reused` positions of the prompt."""
        self._n_reused = n_reused
        self._uses = [
            ImageUse(shown.image.sha256, shown.image.width_px, shown.image.height_px, cached=shown.start < n_reused)
            for shown in self._shown
        ]

    def look_ahead(self) -> None:
        """Begin to encode the next image that will be read, while something else is evaluated."""
        at = len(self.session.items)
        for index, shown in enumerate(self._shown):
            if shown.end > at and index not in self._embeds:
                assert self.lookahead is not None, "the reader made it"
                if not self.lookahead.begun(shown.image.key) and self._source.known_embeds(shown.image) is None:
                    self._encode(shown.image)
                return

    def next_step(self, limit: int) -> Sequence[Item]:
        """Return what of the prompt is to be evaluated next: text, and rows of images whose embeddings are at hand.

        Args:
            limit: most positions, the decoder's `least_step` or more; a few more where few would be left.

        Returns:
            Nothing while it waits for an image to be encoded; little text before one waits with it.

        Raises:
            VisionError: that failed.
        """
        at, least = len(self.session.items), self._decoder.least_step
        most = min(limit + least - 1, self._decoder.n_batch)
        end = self.n_prompt
        self._awaited = None
        for index, shown in enumerate(self._shown):
            if shown.end <= at:
                continue
            if shown.start >= at + most + _WAITING_TEXT:
                break
            wanted = shown.start < at + _WAITING_TEXT
            if not self._has_embeds(index, begin=wanted):
                if wanted:
                    self._awaited = index
                    return ()
                end = shown.start
                break
        if end - at > most:
            end = at + limit if end - at - limit >= least else end - least
        return self.prompt[at:end]

    def rows(self, step: Sequence[Item]) -> Embeds | None:
        """Return the embeddings of the step that is next, float32 (n, n_embd); None if it is text alone."""
        at = len(self.session.items)
        end = at + len(step)
        parts: list[Embeds] = []
        for index, shown in enumerate(self._shown):
            if at < shown.end and shown.start < end:
                if at < shown.start:
                    parts.append(self._text_rows(at, shown.start))
                    at = shown.start
                stop = min(end, shown.end)
                parts.append(self._embeds[index][at - shown.start : stop - shown.start])
                at = stop
        if not parts:
            return None
        if at < end:
            parts.append(self._text_rows(at, end))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _text_rows(self, start: int, end: int) -> Embeds:
        return self._decoder.token_embeds([item for item in self.prompt[start:end] if isinstance(item, int)])

    def was_read(self, step: Sequence[Item], seconds: float) -> None:
        """Note that a step of the prompt was evaluated."""
        self.session.items += step
        at = len(self.session.items)
        self._embeds = {index: rows for index, rows in self._embeds.items() if self._shown[index].end > at}
        self.passed_over = 0
        self._prefill_s += seconds
        self.events.put(Prefill(len(self.session.items), self.n_prompt, self._n_reused))

    def sample(self, index: int, end_tokens: frozenset[int]) -> StopReason | None:
        """Choose a token from the logits of a position of the last evaluation; return why the answer ends with it."""
        n_top = self._request.top_logprobs
        logits = None if n_top is None else self._decoder.logits(index)
        token = self._decoder.sample(self._sampler, index)
        if token in end_tokens:
            return "end"
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter()
        self._tokens.append(token)
        text = self._text.add(self._decoder.piece(token))
        if logits is None or n_top is None:
            self.events.put(Token(token, text))
        else:
            chance, *top = _chances(self._decoder, logits, token, n_top)
            self.events.put(Token(token, text, chance, tuple(top)))
        self.pending = token
        if self._text.stopped:
            return "stop"
        return "max_tokens" if len(self._tokens) == self._request.max_tokens else None

    def was_written(self) -> None:
        """Note that the pending token was evaluated."""
        assert self.pending is not None
        self.session.items.append(self.pending)

    def finish(self, reason: StopReason) -> None:
        """End the answer."""
        first_s = self._first_token_s
        timings = Timings(
            encode=self._encode_s * 1e3,
            prefill=self._prefill_s * 1e3,
            first_token=0.0 if first_s is None else (first_s - self._start_s) * 1e3,
            decode=0.0 if first_s is None else (time.perf_counter() - first_s) * 1e3,
        )
        usage = Usage(self.n_prompt, self._n_reused, len(self._tokens))
        self.retire(Done(self._text.finish(), tuple(self._tokens), reason, usage, tuple(self._uses), timings))

    def retire(self, last: Done | BaseException) -> None:
        """Give the reader the last event; nothing is done with this answer after that."""
        self.session.busy = False
        self._sampler.close()
        self.events.put(last)
        self.retired.set()

    def _has_embeds(self, index: int, *, begin: bool) -> bool:
        """Tell whether the embeddings of an image of the prompt are at hand, and begin to make them if so wished."""
        if index in self._embeds:
            return True
        image, lookahead = self._shown[index].image, self.lookahead
        assert lookahead is not None, "the reader made it"
        start_s = time.perf_counter()
        if index not in self._encoding_start_s:
            if not lookahead.begun(image.key):
                embeds = self._source.known_embeds(image)
                if embeds is not None:
                    self._uses[index] = ImageUse(image.sha256, image.width_px, image.height_px, cached=True)
                    self._encode_s += time.perf_counter() - start_s
                    self._embeds[index] = embeds
                    return True
                if not begin:
                    return False
            self._encoding_start_s[index] = start_s
            self.events.put(Encode(index, len(self._shown), done=False))
            self._encode(image)
        if not lookahead.ready(image.key):
            return False
        embeds = self._embeds[index] = lookahead.wait(image.key)
        lookahead.later(functools.partial(self._source.keep, image, embeds))
        self._encode_s += time.perf_counter() - self._encoding_start_s[index]
        self.events.put(Encode(index, len(self._shown), done=True))
        return True

    def _encode(self, image: PromptImage) -> None:
        assert self.lookahead is not None, "the reader made it"
        self.lookahead.begin(image.key, functools.partial(self._source.encode, image), self._wake)


def _shown(prompt: Sequence[Item]) -> list[_Shown]:
    """Return the images of a prompt in order; of two equal ones side by side, each is one."""
    starts = [at for at, item in enumerate(prompt) if isinstance(item, ImageRow) and item.row == 0]
    shown = []
    for start, limit in itertools.pairwise((*starts, len(prompt))):
        first = prompt[start]
        assert isinstance(first, ImageRow)
        end = next((at for at in range(start, limit) if not isinstance(prompt[at], ImageRow)), limit)
        shown.append(_Shown(first.image, start, end))
    return shown


def _chances(decoder: Decoder, logits: NDArray[np.float32], token: int, n_top: int) -> list[Chance]:
    """Return how likely a token was, and then the `n_top` most likely ones, the best first."""
    best = np.argpartition(logits, -n_top)[-n_top:] if n_top else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    return [Chance(int(at), decoder.piece(int(at)), float(logits[at]) - total) for at in (token, *best)]
