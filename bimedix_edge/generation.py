"""The making of one answer, as the scheduler sees it: what of the prompt comes next, and what a token means.

Events go into a queue, so that nobody who reads slowly holds up others; see `answers` for the reader.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.answer_text import AnswerText
from bimedix_edge.decoder import Decoder, Sampler
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
from bimedix_edge.lookahead import Lookahead
from bimedix_edge.pace import LEAST_STEP
from bimedix_edge.sampling import Sampling
from bimedix_edge.sessions import ImageRow, Item, PromptImage, Session
from bimedix_edge.vision import Stop

__all__ = ["Embeds", "Generation", "ImageSource", "Request"]

Embeds = NDArray[np.float32]
_PENALTY_PROMPT_TOKENS = 64


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
        self._runs = _runs(request.prompt)
        rows = ((at, item) for at, item in enumerate(request.prompt) if isinstance(item, ImageRow))
        shown = {at: item.image for at, item in rows if item.row == 0}
        self._image_starts, self._images = list(shown), list(shown.values())
        self._uses: list[ImageUse] = []
        self._embeds: Embeds | None = None
        self._embeds_index = self._encoding_index = -1
        self._encoding_start_s = 0.0
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
        return max(1, min(left, LEAST_STEP, self._decoder.n_ctx - max(self.n_prompt, len(self.session.items))))

    @property
    def encoding(self) -> bool:
        """Return whether it can only go on when an image is encoded."""
        return self._encoding_index > self._embeds_index

    def abandon(self) -> None:
        """Stop it, since nobody reads it any more."""
        self._abandoned = True

    def should_stop(self) -> bool:
        """Tell whether it was cancelled or abandoned."""
        return self._abandoned or self._request.cancel.cancelled

    def begin(self, n_reused: int) -> None:
        """Note that its session has a sequence, which holds `n_reused` positions of the prompt."""
        self._n_reused = n_reused
        n_known = bisect.bisect_left(self._image_starts, n_reused)
        self._uses = [
            ImageUse(image.sha256, image.width_px, image.height_px, cached=index < n_known)
            for index, image in enumerate(self._images)
        ]

    def look_ahead(self) -> None:
        """Begin to encode the next image that will be read, while something else is evaluated."""
        at = len(self.session.items)
        index = bisect.bisect_right(self._image_starts, at) - 1
        in_image = index >= 0 and at < self.n_prompt and isinstance(self.prompt[at], ImageRow)
        index = index if in_image and index != self._embeds_index else index + 1
        if index < len(self._images) and index > self._embeds_index:
            image = self._images[index]
            assert self.lookahead is not None, "the reader made it"
            if not self.lookahead.begun(image.key) and self._source.known_embeds(image) is None:
                self._encode(image)

    def next_step(self, limit: int) -> Sequence[Item]:
        """Return what of the prompt is to be evaluated next, all tokens or all rows of one image.

        Args:
            limit: most positions, `LEAST_STEP` or more; a few more where few would be left.

        Returns:
            Nothing while it waits for an image to be encoded.

        Raises:
            VisionError: that failed.
        """
        at = len(self.session.items)
        end = self._runs[bisect.bisect_right(self._runs, at)]
        image = bisect.bisect_right(self._image_starts, at) - 1
        if isinstance(self.prompt[at], ImageRow) and not self._has_embeds(image):
            return ()
        if end - at > min(limit + LEAST_STEP - 1, self._decoder.n_batch):
            end = at + limit if end - at - limit >= LEAST_STEP else end - LEAST_STEP
        return self.prompt[at:end]

    def rows(self, step: Sequence[Item]) -> Embeds:
        """Return the embeddings of a step that is rows of an image, float32 (n, n_embd)."""
        first = step[0]
        assert isinstance(first, ImageRow)
        assert self._embeds is not None, "next_step has waited for them"
        return self._embeds[first.row : first.row + len(step)]

    def was_read(self, step: Sequence[Item], seconds: float) -> None:
        """Note that a step of the prompt was evaluated."""
        self.session.items += step
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

    def _has_embeds(self, index: int) -> bool:
        """Tell whether the embeddings of an image of the prompt are at hand, and begin to make them if not."""
        if index == self._embeds_index:
            return True
        image, lookahead = self._images[index], self.lookahead
        assert lookahead is not None, "the reader made it"
        start_s = time.perf_counter()
        if index != self._encoding_index:
            embeds = None if lookahead.begun(image.key) else self._source.known_embeds(image)
            self._uses[index] = ImageUse(image.sha256, image.width_px, image.height_px, cached=embeds is not None)
            if embeds is not None:
                self._encode_s += time.perf_counter() - start_s
                self._embeds, self._embeds_index = embeds, index
                return True
            self._encoding_index, self._encoding_start_s = index, start_s
            self.events.put(Encode(index, len(self._images), done=False))
            self._encode(image)
        if not lookahead.ready(image.key):
            return False
        self._embeds, self._embeds_index = lookahead.wait(image.key), index
        lookahead.later(functools.partial(self._source.keep, image, self._embeds))
        self._encode_s += time.perf_counter() - self._encoding_start_s
        self.events.put(Encode(index, len(self._images), done=True))
        return True

    def _encode(self, image: PromptImage) -> None:
        assert self.lookahead is not None, "the reader made it"
        self.lookahead.begin(image.key, functools.partial(self._source.encode, image), self._wake)


def _runs(prompt: Sequence[Item]) -> list[int]:
    """Return where runs of tokens, or of rows of one image, end."""

    n_begun = 0

    def kind(item: Item) -> tuple[bool, int]:
        # not by the image itself: of two equal ones side by side, rows of both would make one run
        nonlocal n_begun
        n_begun += isinstance(item, ImageRow) and item.row == 0
        return isinstance(item, ImageRow), n_begun

    return list(itertools.accumulate(len(list(group)) for _, group in itertools.groupby(prompt, kind)))


def _chances(decoder: Decoder, logits: NDArray[np.float32], token: int, n_top: int) -> list[Chance]:
    """Return how likely a token was, and then the `n_top` most likely ones, the best first."""
    best = np.argpartition(logits, -n_top)[-n_top:] if n_top else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    return [Chance(int(at), decoder.piece(int(at)), float(logits[at]) - total) for at in (token, *best)]
