"""One thread that owns the decoder and advances all answers together.

Each round is a step of writing, in which every answer that is being written gets its next token in one pass over the
weights, and a step of reading, which evaluates a piece of one prompt. So a long prompt does not stop the others'
tokens: its pieces take as long as a few tokens, or as long as is quick where nobody waits. Where no result depends on
what is computed beside it, the two are one step, which saves a pass over the weights.

Answers get their places in order of arrival. Where cells of the KV cache run out, the youngest answer is parked in the
host's memory until an older one has ended, and goes on from the same bits: no answer is cut short by its neighbours.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bimedix_edge.decoder.decoder import Aborted, Decoder
from bimedix_edge.engine.generation import Generation, ImageSource, Request
from bimedix_edge.engine.pace import Pace
from bimedix_edge.engine.sessions import Item, SessionTable
from bimedix_edge.errors import UsageError

__all__ = ["Scheduler"]

THREAD_NAME = "bimedix-edge-engine"
# how long an answer that waits for an image is not looked at, if nothing wakes the thread
_POLL_S = 0.02
# so many positions of a prompt that is preferred since it is shorter make up for one step of waiting
_PASSED_OVER = 64
_CLOSED = "Expected the model to be open, but it is closed; open it again."


class _Piece(NamedTuple):
    """What of a prompt is evaluated next."""

    generation: Generation
    step: Sequence[Item]


class Scheduler:
    """Runs generations; its thread starts with the first one.

    Args:
        decoder: evaluated by that thread only.
        sessions: likewise.
        end_tokens: that end an answer.
        n_parallel: answers that are made together; more wait.
        overlap: whether an image is encoded while a lone prompt is read.
        shared_cores: whether images are encoded on the cores that evaluate.
    """

    def __init__(
        self,
        decoder: Decoder,
        sessions: SessionTable,
        end_tokens: frozenset[int],
        n_parallel: int,
        overlap: Callable[[], bool],
        *,
        shared_cores: bool,
    ) -> None:
        self._decoder = decoder
        self._sessions = sessions
        self._end_tokens = end_tokens
        self._n_parallel = n_parallel
        self._overlap = overlap
        self._shared_cores = shared_cores
        self._pace = Pace(decoder.n_batch, decoder.least_step)
        self._condition = threading.Condition()
        self._woken = False
        self._closing = False
        self._errands: collections.deque[Callable[[], None]] = collections.deque()
        self._waiting: collections.deque[Generation] = collections.deque()
        self._live: list[Generation] = []
        self._parked: list[Generation] = []
        self._thread: threading.Thread | None = None

    def generation(self, request: Request, images: ImageSource) -> Generation:
        """Return what is asked as something that can be submitted; submit it, since it holds a sampler."""
        return Generation(request, self._decoder, images, self.wake)

    def submit(self, generation: Generation) -> None:
        """Let a generation be made; what becomes of it is told by its events."""
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
        """Wait until an abandoned generation is not touched any more.

        Does nothing on the thread itself, where the garbage collector may close an iterator that was lost.
        """
        self.wake()
        if threading.current_thread() is not self._thread:
            generation.retired.wait()

    def between_steps(self, errand: Callable[[], None]) -> None:
        """Do something that must not happen during a step, and return when it is done."""
        done = threading.Event()
        with self._condition:
            thread = None if threading.current_thread() is self._thread else self._thread
            queued = thread is not None and not self._closing
            if queued:
                self._errands += [errand, done.set]
        if queued:
            self.wake()
            done.wait()
        else:
            if thread is not None:
                thread.join()
            errand()

    def close(self) -> None:
        """End what is being made, and the thread; calling it again does nothing."""
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
                self._do_errands()
                self._end_stopped()
                self._admit()
                self._step()
        except BaseException as error:  # a defect: whoever waits must hear of it
            failure = error
        with self._condition:
            self._closing = True
        self._do_errands()
        for generation in (*self._live, *self._parked, *self._waiting):
            generation.retire(failure)

    def _encoding(self) -> bool:
        """Tell whether an answer can only go on when an image is encoded."""
        return any(generation.encoding for generation in self._live)

    def _sleep(self, seconds: float) -> None:
        """Wait for something to do: without limit if there is nothing, else until it may be time to look again."""
        with self._condition:
            idle = not (self._live or self._parked or self._waiting or self._errands or self._closing)
            if not self._woken:
                self._condition.wait(None if idle else seconds)
            self._woken = False

    def _do_errands(self) -> None:
        while self._errands:
            self._errands.popleft()()

    def _end_stopped(self) -> None:
        for line in (self._live, self._parked, self._waiting):
            for generation in list(line):
                if generation.session.closed:
                    line.remove(generation)
                    generation.retire(UsageError("Expected an open conversation, but this one was closed meanwhile."))
                elif generation.should_stop():
                    line.remove(generation)
                    generation.finish("cancelled")

    def _admit(self) -> None:
        """Give sequences to those that were parked, then to those that wait, the oldest first."""
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
        """Advance every answer that is being written, and one prompt; wait if there is nothing to do."""
        writing = self._writing()
        together = bool(writing) and self._decoder.exact_beside
        # there are fewer who write than answers, and so than positions of a step
        piece = self._next_piece(self._decoder.n_batch - (len(writing) if together else 0))
        if together and piece is not None:
            self._write_and_read(writing, *piece)
            return
        wrote = self._write(writing)
        if piece is not None:
            self._read(*piece)
        elif not wrote:
            self._sleep(_POLL_S)
        elif self._shared_cores and self._encoding():
            # those who write leave the cores to an image's encoding for a while, as they do to a prompt
            self._sleep(self._pace.pause_s())

    def _writing(self) -> list[Generation]:
        """Return those that get a token next, having ended those whose context is full."""
        writing = [generation for generation in self._live if generation.pending is not None]
        for generation in list(writing):
            if len(generation.session.items) >= self._decoder.n_ctx:
                writing.remove(generation)
                self._live.remove(generation)
                generation.finish("context")
        return writing

    def _next_piece(self, most: int) -> _Piece | None:
        """Return what of a prompt is evaluated next; None if there is nothing, or nothing but images to wait for.

        Args:
            most: positions that it may have, the decoder's `least_step` or more.
        """
        reading = [generation for generation in self._live if generation.pending is None]
        beside = self._overlap() or len(self._live) > 1
        # the one with least to do first, but nobody is passed over for long
        reading.sort(key=lambda generation: generation.n_unread - _PASSED_OVER * generation.passed_over)
        writes = len(reading) < len(self._live)
        limit = min(most, self._pace.limit(writes=writes, shared=len(reading) > 1 or bool(self._waiting)))
        for generation in reading:
            try:
                step = generation.next_step(limit)
                if beside:
                    generation.look_ahead()
            except Exception as error:  # an encoding's
                self._retire(generation, error)
                continue
            if step:
                for other in reading:
                    other.passed_over += other is not generation
                return _Piece(generation, step)
        return None

    def _with_room(self, writing: list[Generation], piece: _Piece | None) -> tuple[list[Generation], _Piece | None]:
        """Return what of both can be evaluated, with cells for it: where they run out, the youngest are parked."""
        writing = [generation for generation in writing if generation in self._live]
        if piece is not None and piece.generation not in self._live:
            piece = None
        while not self._sessions.make_room(len(writing) + (0 if piece is None else len(piece.step))):
            parked = self._park_youngest()
            writing = [generation for generation in writing if generation is not parked]
            if piece is not None and piece.generation is parked:
                piece = None
        return writing, piece

    def _write(self, writing: list[Generation]) -> bool:
        writing, _ = self._with_room(writing, None)
        if not writing:
            return False
        start_s = time.perf_counter()
        try:
            self._decoder.evaluate_each(*_columns(writing), self._should_stop())
        except Aborted:
            return True
        except Exception as error:  # of all of them, since it cannot be told whose fault it was
            for generation in writing:
                self._retire(generation, error)
            return True
        if not self._encoding():
            self._pace.wrote(time.perf_counter() - start_s)
        self._were_written(writing)
        return True

    def _read(self, generation: Generation, step: Sequence[Item]) -> None:
        _, piece = self._with_room([], _Piece(generation, step))
        if piece is None:
            return
        seq, at = _seq(generation), len(generation.session.items)
        samples = at + len(step) == generation.n_prompt
        start_s = time.perf_counter()
        try:
            if (rows := generation.rows(step)) is not None:
                self._decoder.evaluate_embeds(seq, at, rows, self._should_stop(), want_logits=samples)
            else:
                tokens = [item for item in step if isinstance(item, int)]
                self._decoder.evaluate_tokens(seq, at, tokens, self._should_stop(), want_logits=samples)
        except Aborted:
            return
        except Exception as error:  # a damaged file's, or llama.cpp's
            self._retire(generation, error)
            return
        self._was_read(generation, step, time.perf_counter() - start_s, -1 if samples else None)

    def _write_and_read(self, writing: list[Generation], generation: Generation, step: Sequence[Item]) -> None:
        """Do both in one step."""
        writing, piece = self._with_room(writing, _Piece(generation, step))
        if not writing or piece is None:
            self._write(writing)
            if piece is not None:
                self._read(*piece)
            return
        seq, at = _seq(generation), len(generation.session.items)
        samples = at + len(step) == generation.n_prompt
        start_s = time.perf_counter()
        try:
            rows = generation.rows(step)
            read = [item for item in step if isinstance(item, int)] if rows is None else rows
            self._decoder.evaluate_beside(*_columns(writing), seq, at, read, want_logits=samples)
        except Exception as error:  # of all of them, as above
            for one in (*writing, generation):
                self._retire(one, error)
            return
        seconds = time.perf_counter() - start_s
        self._were_written(writing)
        self._was_read(generation, step, seconds, len(writing) + len(step) - 1 if samples else None)

    def _were_written(self, writing: list[Generation]) -> None:
        for index, generation in enumerate(writing):
            generation.was_written()
            self._sample(generation, index)

    def _was_read(self, generation: Generation, step: Sequence[Item], seconds: float, sampled: int | None) -> None:
        self._pace.read(len(step), seconds)
        generation.was_read(step, seconds)
        if sampled is not None:
            self._sample(generation, sampled)

    def _sample(self, generation: Generation, index: int) -> None:
        try:
            reason = generation.sample(index, self._end_tokens)
        except Exception as error:  # a grammar's: of this answer only
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
        """Return what a step is to ask between its operations: nothing if it is several answers' or others wait for it.

        A lone answer's steps can be long, and asking costs little there. Others' are short, and asking needs Python's
        lock each time, which their readers want as well.
        """
        if len(self._live) != 1:
            return None
        lone = self._live[0]
        return lambda: lone.should_stop() or self._closing


def _columns(writing: list[Generation]) -> tuple[list[int], list[int], list[int]]:
    """Return the sequences, positions and tokens of a step of writing."""
    return (
        [_seq(generation) for generation in writing],
        [len(generation.session.items) for generation in writing],
        [generation.pending or 0 for generation in writing],
    )


def _seq(generation: Generation) -> int:
    seq = generation.session.seq
    assert seq is not None, "a live answer has a sequence"
    return seq
