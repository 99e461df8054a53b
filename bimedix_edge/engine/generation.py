"""One answer as the scheduler sees it: which chunk of the prompt comes next, and what a sampled token means.

Events go into a queue, so a slow reader holds up nobody; see `reader` for the other end of it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.batches import Run
from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.decoder.sampler import Sampler
from bimedix_edge.engine.answer_text import AnswerText
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.prompt_images import PromptImages
from bimedix_edge.engine.request import EngineRequest
from bimedix_edge.engine.sessions import Item
from bimedix_edge.events import Done, Event, Logprob, Prefill, StopReason, Timings, Token, Usage

__all__ = ["Generation"]

_PENALTY_PROMPT_TOKENS = 64
# cells that are kept free for the next tokens of an answer
_SPARE = 64


class Generation:
    """One answer. Once it is submitted, all but `abandon` and `events` belongs to the scheduler's thread.

    Args:
        request: Prompt and options.
        decoder: Decoder that evaluates it.
        embeddings: Source of the images' embeddings.
        wake: Called from another thread when an image is encoded.

    Attributes:
        session: Session of the request.
        images: Images of the prompt, and their embeddings.
        events: What happened, in order; the last one is `Done` or an exception.
        retired: Set when the scheduler will not touch this answer again.
        pending: Token that was sampled last and is not evaluated yet; None during prefill.
        passed_over: Number of other prompts' chunks since the last one of this prompt.
    """

    def __init__(
        self, request: EngineRequest, decoder: Decoder, embeddings: ImageEmbeddings, wake: Callable[[], None]
    ) -> None:
        self.session = request.session
        self.events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self.images = PromptImages(request.prompt, embeddings, self.events.put, wake)
        self.retired = threading.Event()
        self.pending: int | None = None
        self.passed_over = 0
        self._request = request
        self._options = request.options
        self._decoder = decoder
        self._abandoned = False
        self._sampler: Sampler = decoder.sampler(request.options.sampling)
        self._sampler.accept(item for item in request.prompt[-_PENALTY_PROMPT_TOKENS:] if isinstance(item, int))
        self._n_reused = 0
        self._tokens: list[int] = []
        self._text = AnswerText(request.options.stop)
        self._start_s = time.perf_counter()
        self._first_token_s: float | None = None
        self._prefill_s = 0.0

    @property
    def prompt(self) -> Sequence[Item]:
        """Return its prompt."""
        return self._request.prompt

    @property
    def n_unread(self) -> int:
        """Return the number of the prompt's positions that are not evaluated yet."""
        return max(0, len(self.prompt) - len(self.session.items))

    @property
    def n_spare(self) -> int:
        """Return the number of cells it needs next, besides those it has: a few, for an answer may be short."""
        left = self._options.max_tokens - len(self._tokens)
        return max(1, min(left, _SPARE, self._decoder.n_ctx - max(len(self.prompt), len(self.session.items))))

    @property
    def _seq(self) -> int:
        assert self.session.seq is not None, "a live answer has a sequence"
        return self.session.seq

    def abandon(self) -> None:
        """Stop it, since nobody reads it any more."""
        self._abandoned = True

    def should_stop(self) -> bool:
        """Return whether it was cancelled or abandoned."""
        return self._abandoned or self._request.cancel.cancelled

    def begin(self, n_reused: int) -> None:
        """Note that its session has a sequence, which holds `n_reused` positions of the prompt."""
        self._n_reused = n_reused
        self.images.begin(n_reused)

    def look_ahead(self) -> None:
        """Begin to encode the next image of the prompt, while something else is evaluated."""
        self.images.look_ahead(len(self.session.items))

    def next_chunk(self, limit: int) -> Sequence[Item]:
        """Return the next chunk of the prompt: text, and rows of images whose embeddings are at hand.

        Args:
            limit: Most positions, the decoder's `least_step` or more. The chunk is a little longer where fewer than
                `least_step` positions would be left.

        Returns:
            The chunk; empty while an image has to be encoded first.

        Raises:
            VisionError: An encoding failed.
        """
        at, least = len(self.session.items), self._decoder.least_step
        most = min(limit + least - 1, self._decoder.n_batch)
        end = self.images.ready_end(at, most)
        if end - at > most:
            end = at + limit if end - at - limit >= least else end - least
        return self.prompt[at:end]

    def chunk_runs(self, chunk: Sequence[Item]) -> list[Run]:
        """Return the chunk that is next as runs to evaluate; the last position of the prompt wants logits."""
        at = len(self.session.items)
        return self.images.runs(self._seq, at, at + len(chunk))

    def token_run(self) -> Run:
        """Return the pending token as a run to evaluate."""
        assert self.pending is not None, "its prompt is evaluated"
        return Run(self._seq, len(self.session.items), [self.pending])

    def chunk_evaluated(self, chunk: Sequence[Item], seconds: float) -> None:
        """Note that a chunk of the prompt was evaluated."""
        self.session.items += chunk
        self.images.drop_before(len(self.session.items))
        self.passed_over = 0
        self._prefill_s += seconds
        self.events.put(Prefill(len(self.session.items), len(self.prompt), self._n_reused))

    def token_evaluated(self) -> None:
        """Note that the pending token was evaluated."""
        assert self.pending is not None
        self.session.items.append(self.pending)

    def sample(self, index: int, end_tokens: frozenset[int]) -> StopReason | None:
        """Choose a token from logits of the last evaluation; return the reason if the answer ends with it."""
        n_top = self._options.top_logprobs
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
            logprob, *top = _logprobs(self._decoder, logits, token, n_top)
            self.events.put(Token(token, text, logprob, tuple(top)))
        self.pending = token
        if self._text.stopped:
            return "stop"
        return "max_tokens" if len(self._tokens) == self._options.max_tokens else None

    def finish(self, reason: StopReason) -> None:
        """End the answer."""
        first_s = self._first_token_s
        timings = Timings(
            encode=self.images.encode_s * 1e3,
            prefill=self._prefill_s * 1e3,
            first_token=0.0 if first_s is None else (first_s - self._start_s) * 1e3,
            decode=0.0 if first_s is None else (time.perf_counter() - first_s) * 1e3,
        )
        usage = Usage(len(self.prompt), self._n_reused, len(self._tokens))
        self.retire(Done(self._text.finish(), tuple(self._tokens), reason, usage, tuple(self.images.uses), timings))

    def retire(self, last: Done | BaseException) -> None:
        """Give the reader the last event; the scheduler does not touch this answer after that."""
        self.session.busy = False
        self._sampler.close()
        self.events.put(last)
        self.retired.set()


def _logprobs(decoder: Decoder, logits: NDArray[np.float32], token: int, n_top: int) -> list[Logprob]:
    """Return the log-probability of a token, and then those of the `n_top` most likely ones, the best first."""
    best = np.argpartition(logits, -n_top)[-n_top:] if n_top else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    return [Logprob(int(at), decoder.piece(int(at)), float(logits[at]) - total) for at in (token, *best)]
