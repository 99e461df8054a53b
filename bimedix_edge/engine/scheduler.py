"""One thread that owns the decoder and advances all answers together.

Each round is a decode step, in which every running answer gets its next token in one pass over the weights, and a
prefill step, which evaluates a chunk of one prompt. So a long prompt does not stop the tokens of others: its chunks
take as long as a few tokens, or as long as is quick where nobody waits. Where no result depends on what else is in the
batch, the two are one step, which saves a pass over the weights.

Answers start in order of arrival. Where the cells of the KV cache run out, the youngest answer is parked in the host's
memory until an older one has ended, and goes on from the same bits. So no answer is cut short by its neighbours.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bimedix_edge.decoder.decoder import Aborted, Decoder
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.generation import Generation
from bimedix_edge.engine.pace import Pace
from bimedix_edge.engine.request import EngineRequest
from bimedix_edge.engine.sessions import Item, SessionTable
from bimedix_edge.errors import UsageError

__all__ = ["Scheduler"]

THREAD_NAME = "bimedix-edge-engine"
# while nothing wakes the thread, it looks at answers that wait for an image this often
_POLL_S = 0.02
# a step of waiting weighs as much as this many positions that another prompt is shorter by
_PASSED_OVER = 64
_CLOSED = "The model is closed. Open it again."
_SESSION_CLOSED = "The conversation was closed meanwhile. Start a new one."


class _Chunk(NamedTuple):
    """The next positions of a prompt."""

    generation: Generation
    items: Sequence[Item]


class Scheduler:
    """Runs generations; its thread starts with the first one.

    Args:
        decoder: Decoder, which only that thread evaluates.
        sessions: Sessions of the decoder; likewise.
        end_tokens: Tokens that end an answer.
        n_parallel: Most answers in one batch; more wait.
        shared_cores: Whether images are encoded on the cores that evaluate.

    Attributes:
        overlap: Whether an image is encoded while the prompt before it is evaluated, also for a lone answer. By default
            where the encoder has a device of its own: on the CPU both want the same cores, and little is gained.
        pace: Lengths of chunks.
    """

    def __init__(
        self,
        decoder: Decoder,
        sessions: SessionTable,
        end_tokens: frozenset[int],
        n_parallel: int,
        *,
        shared_cores: bool,
    ) -> None:
        self.overlap = not shared_cores
        self.pace = Pace(decoder.n_batch, decoder.least_step)
        self._decoder = decoder
        self._sessions = sessions
        self._end_tokens = end_tokens
        self._n_parallel = n_parallel
        self._shared_cores = shared_cores
        self._condition = threading.Condition()
        self._woken = False
        self._closing = False
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._waiting: collections.deque[Generation] = collections.deque()
        self._live: list[Generation] = []
        self._parked: list[Generation] = []
        self._thread: threading.Thread | None = None

    def generation(self, request: EngineRequest, embeddings: ImageEmbeddings) -> Generation:
        """Return a request as a generation; submit it, since it holds a sampler."""
        return Generation(request, self._decoder, embeddings, self.wake)

    def submit(self, generation: Generation) -> None:
        """Queue a generation; its events report what becomes of it."""
        with self._condition:
            if self._closing:
                generation.retire(UsageError(_CLOSED))
                return
            self._waiting.append(generation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
        self.wake()

    def check_open(self) -> None:
        """Raise UsageError if this was closed."""
        if self._closing:
            raise UsageError(_CLOSED)

    def wake(self) -> None:
        """Let the thread look again at what can be done."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def wait_for(self, generation: Generation) -> None:
        """Wait until the thread has retired an abandoned generation.

        Does nothing on the thread itself, where the garbage collector may close an iterator that was lost.
        """
        self.wake()
        if threading.current_thread() is not self._thread:
            generation.retired.wait()

    def between_steps(self, call: Callable[[], None]) -> None:
        """Call a function that must not run during a step, and return when it is done."""
        done = threading.Event()
        with self._condition:
            thread = None if threading.current_thread() is self._thread else self._thread
            queued = thread is not None and not self._closing
            if queued:
                self._calls += [call, done.set]
        if queued:
            self.wake()
            done.wait()
        else:
            if thread is not None:
                thread.join()
            call()

    def close(self) -> None:
        """End all answers, and the thread; calling it again does nothing."""
        with self._condition:
            self._closing = True
            thread = self._thread
        self.wake()
        if thread is not None and threading.current_thread() is not thread:
            thread.join()

    def _run(self) -> None:
        failure: BaseException = UsageError(_CLOSED)
        try:
            while not self._closing:
                self._make_calls()
                self._end_stopped()
                self._admit()
                self._step()
        except BaseException as error:  # a defect: all readers must hear of it
            failure = error
        with self._condition:
            self._closing = True
        self._make_calls()
        for generation in (*self._live, *self._parked, *self._waiting):
            generation.retire(failure)

    def _encoding(self) -> bool:
        """Return whether an answer can only go on when an image is encoded."""
        return any(generation.images.waiting for generation in self._live)

    def _sleep(self, seconds: float) -> None:
        """Wait for something to do: without limit if there is nothing, else until it may be time to look again."""
        with self._condition:
            idle = not (self._live or self._parked or self._waiting or self._calls or self._closing)
            if not self._woken:
                self._condition.wait(None if idle else seconds)
            self._woken = False

    def _make_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _end_stopped(self) -> None:
        for line in (self._live, self._parked, self._waiting):
            for generation in list(line):
                if generation.session.closed:
                    line.remove(generation)
                    generation.retire(UsageError(_SESSION_CLOSED))
                elif generation.should_stop():
                    line.remove(generation)
                    generation.finish("cancelled")

    def _admit(self) -> None:
        """Give sequences to parked answers, then to waiting ones, the oldest first."""
        while self._parked and len(self._live) < self._n_parallel:
            generation = self._parked[0]
            if not self._sessions.resume(generation.session, generation.n_unread + generation.n_spare):
                return
            self._live.append(self._parked.pop(0))
        while self._waiting and not self._parked and len(self._live) < self._n_parallel:
            generation = self._waiting[0]
            try:
                n_reused = self._sessions.begin(generation.session, generation.prompt, generation.n_spare)
            except Exception as error:  # a closed session's, or llama.cpp's
                self._waiting.popleft()
                generation.retire(error)
                continue
            if n_reused is None:
                return
            self._live.append(self._waiting.popleft())
            generation.begin(n_reused)

    def _step(self) -> None:
        """Advance every answer by a token, and one prompt by a chunk; wait if there is nothing to do."""
        decoding = self._decoding()
        together = bool(decoding) and self._decoder.exact_beside
        # fewer answers decode than there are answers, and so than positions in a step
        chunk = self._next_chunk(self._decoder.n_batch - (len(decoding) if together else 0))
        if together and chunk is not None:
            self._evaluate(decoding, chunk)
            return
        decoded = self._evaluate(decoding, None)
        if chunk is not None:
            self._evaluate([], chunk)
        elif not decoded:
            self._sleep(_POLL_S)
        elif self._shared_cores and self._encoding():
            # running answers leave the cores to an image's encoding for a while, as they do to a prompt
            self._sleep(self.pace.pause_s())

    def _decoding(self) -> list[Generation]:
        """Return the answers that get a token next, having ended those whose context is full."""
        decoding = [generation for generation in self._live if generation.pending is not None]
        for generation in list(decoding):
            if len(generation.session.items) >= self._decoder.n_ctx:
                decoding.remove(generation)
                self._live.remove(generation)
                generation.finish("context")
        return decoding

    def _next_chunk(self, most: int) -> _Chunk | None:
        """Return the chunk of a prompt that is evaluated next; None if there is none, or each waits for an image.

        Args:
            most: Most positions, the decoder's `least_step` or more.
        """
        prefilling = [generation for generation in self._live if generation.pending is None]
        beside = self.overlap or len(self._live) > 1
        # the prompt with least to do first, but no prompt is passed over for long
        prefilling.sort(key=lambda generation: generation.n_unread - _PASSED_OVER * generation.passed_over)
        decodes = len(prefilling) < len(self._live)
        limit = min(most, self.pace.limit(decodes=decodes, shared=len(prefilling) > 1 or bool(self._waiting)))
        for generation in prefilling:
            try:
                items = generation.next_chunk(limit)
                if beside:
                    generation.look_ahead()
            except Exception as error:  # an encoding's
                self._retire(generation, error)
                continue
            if items:
                for other in prefilling:
                    other.passed_over += other is not generation
                return _Chunk(generation, items)
        return None

    def _evaluate(self, decoding: list[Generation], chunk: _Chunk | None) -> bool:
        """Evaluate a token of each decoding answer and a chunk of a prompt in one pass; return whether there was any.

        A failure ends all answers in the pass, since llama.cpp does not say which of them caused it.
        """
        decoding, chunk = self._with_room(decoding, chunk)
        if not decoding and chunk is None:
            return False
        start_s = time.perf_counter()
        try:
            runs = [generation.token_run() for generation in decoding]
            runs += [] if chunk is None else chunk.generation.chunk_runs(chunk.items)
            indices = self._decoder.evaluate(runs, self._should_stop())
        except Aborted:
            return True
        except Exception as error:  # a damaged file's, or llama.cpp's
            for generation in decoding if chunk is None else (*decoding, chunk.generation):
                self._retire(generation, error)
            return True
        seconds = time.perf_counter() - start_s
        if chunk is None and not self._encoding():
            self.pace.decoded(seconds)
        for generation, index in zip(decoding, indices, strict=False):
            generation.token_evaluated()
            self._sample(generation, index)
        if chunk is not None:
            self.pace.prefilled(len(chunk.items), seconds)
            chunk.generation.chunk_evaluated(chunk.items, seconds)
            for index in indices[len(decoding) :]:
                self._sample(chunk.generation, index)
        return True

    def _with_room(self, decoding: list[Generation], chunk: _Chunk | None) -> tuple[list[Generation], _Chunk | None]:
        """Return what of both can be evaluated, with cells for it: where cells run out, the youngest are parked."""
        decoding = [generation for generation in decoding if generation in self._live]
        if chunk is not None and chunk.generation not in self._live:
            chunk = None
        while not self._sessions.make_room(len(decoding) + (0 if chunk is None else len(chunk.items))):
            parked = self._park_youngest()
            decoding = [generation for generation in decoding if generation is not parked]
            if chunk is not None and chunk.generation is parked:
                chunk = None
        return decoding, chunk

    def _sample(self, generation: Generation, index: int) -> None:
        try:
            reason = generation.sample(index, self._end_tokens)
        except Exception as error:  # a grammar's, which concerns this answer only
            self._retire(generation, error)
            return
        if reason is not None:
            self._live.remove(generation)
            generation.finish(reason)

    def _retire(self, generation: Generation, error: BaseException) -> None:
        self._live.remove(generation)
        generation.retire(error)

    def _park_youngest(self) -> Generation:
        """Take the sequence from the answer that came last; the oldest always goes on."""
        generation = self._live.pop()
        assert self._live, "a lone answer has all cells that are left"
        self._sessions.park(generation.session)
        self._parked.insert(0, generation)
        return generation

    def _should_stop(self) -> Callable[[], bool] | None:
        """Return what a step polls between its operations; None unless one answer is alone.

        A lone answer's steps can be long, and polling costs little there. With several, steps are short, and polling
        takes Python's lock each time, which their readers want as well.
        """
        if len(self._live) != 1:
            return None
        lone = self._live[0]
        return lambda: lone.should_stop() or self._closing
