"""The parent's side of the model's process: it starts the child, restarts it when it dies, and gives it requests.

Nothing native is imported here: what can abort, run out of memory or be killed does so in the child. The parent keeps
every request until it ends. When the child dies, the requests that wait go to the next child. So do, once, the requests
that the child had not begun; once only, since such a request may be what ended it. The requests that it was working on
end with `Failed("lost")` and the text so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bimedix_edge import child, errors
from bimedix_edge.child import FrameError
from bimedix_edge.errors import BimedixEdgeError, LostError, PromptError
from bimedix_edge.events import Done, Encode, Token
from bimedix_edge.server.front.metrics import State, Stats
from bimedix_edge.server.front.waiting import WaitingLine
from bimedix_edge.server.link.messages import (
    Failed,
    GenerateRequest,
    ImagePart,
    ImagePreview,
    ModelFacts,
    Queued,
    ServerEvent,
)
from bimedix_edge.server.link.wire import (
    CancelRequest,
    Cells,
    CountCells,
    Detokenize,
    DetokenizedText,
    ErrorReply,
    EventFrame,
    Generate,
    ModelReady,
    ModelRefused,
    OpenModel,
    Preview,
    PreviewReply,
    ReplyFrame,
    RequestFrame,
    TokenIds,
    Tokenize,
    UnsendableText,
    event_frame_types,
    pack,
    unpack_reply,
)
from bimedix_edge.settings import Settings

__all__ = ["ModelProcess"]

_ENTRY = "bimedix_edge.server.model.process:main"
# the server gives up after this many deaths in a row before the model is ready
_MOST_FAILURES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_CLOSE_S = 5.0
_FIRST_GUESS_S = 10.0
_LOST = "The model's process ended before the answer was complete. It is being restarted; ask again."
_GIVEN_UP = "The model's process cannot be started. See the server's first messages, and start the server again."
_STOPPING = "The server is being stopped. Ask again later."
_UNSENDABLE = (
    f"The request is larger than {child.MAX_FRAME_BYTES >> 30} GiB, or a number in it has more than 64 bits. Make it "
    "smaller."
)

_Reply = TypeVar("_Reply", TokenIds, DetokenizedText, PreviewReply, Cells)


class _Job:
    """One request, from its arrival to its end."""

    def __init__(self, request: GenerateRequest, number: int) -> None:
        self.request = request
        self.number = number
        self.events: asyncio.Queue[ServerEvent] = asyncio.Queue()
        self.place: int | None = None
        self.text = ""
        self.begun_s = 0.0
        # a request goes to the next child unless the last one had begun it, it was requeued before, or its client left
        self.begun = self.requeued = self.left = False


class ModelProcess:
    """The model in a process of its own, seen from the server's event loop; call every method on that loop.

    Args:
        settings: Settings of the runtime, `parallel` and `queue` among them.
        model: A bundle's directory or its name in the store; None is what `Runtime.open` takes then.

    Attributes:
        state: `loading`, `ready`, `restarting` after the child died, or `failed` when it was given up.
        facts: What the model is; None until it was ready once.
        fault: Why it failed; None unless it did.
        pid: Number of the child's process; None while there is none.
        counters: What happened since the server started; see `stats` for the gauges.
    """

    def __init__(self, settings: Settings, model: str | Path | None = None) -> None:
        self.state: State = "loading"
        self.facts: ModelFacts | None = None
        self.fault: BimedixEdgeError | None = None
        self.pid: int | None = None
        self.counters = Stats()
        # `model` replaces the settings' model
        self._settings = settings if model is None else replace(settings, model=None)
        self._model = None if model is None else os.fsencode(model)
        self._numbers = itertools.count(1)
        self._line: WaitingLine[_Job] = WaitingLine()
        self._active: dict[int, _Job] = {}
        self._calls: dict[int, asyncio.Future[ReplyFrame]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._answer_s = _FIRST_GUESS_S

    async def start(self) -> None:
        """Begin to start the child. `ready` waits for it; requests may come already."""
        self._task = asyncio.create_task(self._keep_running())

    async def ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            BimedixEdgeError: The child cannot load the model; the error has the class and exit code of the child's.
            LostError: The child died repeatedly before it was ready.
        """
        while self.state != "ready":
            if self.fault is not None:
                raise self.fault
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End the child and every request; calling it again does nothing."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._end_all(_STOPPING, waiting=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[ServerEvent, None]:
        """Yield what happens to a request; closing the iterator cancels the request within a decode step.

        Yields:
            `Queued` while it waits, whenever its place changes; `Encode`, `Prefill` and `Token`; last, `Done` or
            `Failed`.
        """
        if (refused := self._refusal()) is not None:
            yield refused
            return
        job = _Job(request, next(self._numbers))
        self._line.put(request.tenant, job)
        self._dispatch()
        try:
            while True:
                event = await job.events.get()
                yield event
                if isinstance(event, (Done, Failed)):
                    return
        finally:
            job.left = True
            if self._line.remove(request.tenant, job):
                self._announce_places()
            elif job.number in self._active:
                self._send(pack(CancelRequest(job.number)))

    def in_flight(self, tenant: str) -> int:
        """Return how many requests of a tenant the child works on."""
        return sum(job.request.tenant == tenant for job in self._active.values())

    async def tokenize(self, text: str) -> list[int]:
        """Return the tokens of plain text.

        Raises:
            PromptError: The text is not valid Unicode.
            LostError: There is no model to ask.
        """
        return list((await self._call(Tokenize(next(self._numbers), text), TokenIds)).tokens)

    async def detokenize(self, tokens: list[int]) -> str:
        """Return the text of tokens.

        Raises:
            UsageError: A token is not in the vocabulary.
            LostError: There is no model to ask.
        """
        return (await self._call(Detokenize(next(self._numbers), tuple(tokens)), DetokenizedText)).text

    async def preview(self, image: ImagePart) -> ImagePreview:
        """Return what the model sees of a picture, which the child decodes.

        Raises:
            ImageError, UsageError: See `imaging.picture.load_picture`.
            LostError: There is no model to ask, or the picture ended it.
        """
        return (await self._call(Preview(next(self._numbers), image), PreviewReply)).preview

    async def stats(self) -> Stats:
        """Return counters and gauges; those of the KV cache are 0 while there is no model to ask."""
        used = 0
        with contextlib.suppress(LostError):
            used = (await self._call(CountCells(next(self._numbers)), Cells)).n_used
        return replace(
            self.counters,
            n_queued=len(self._line),
            n_active=len(self._active),
            n_slots=self._settings.parallel,
            kv_used=used,
            kv_cells=0 if self.facts is None else self.facts.n_ctx,
        )

    async def _keep_running(self) -> None:
        failures, pause_s = 0, _FIRST_PAUSE_S
        # `_closing` is asked, too, since `wait_for` may lose a cancellation that comes as it ends
        while self.fault is None and not self._closing:
            was_ready = await self._run_once()
            failures, pause_s = (0, _FIRST_PAUSE_S) if was_ready else (failures + 1, pause_s)
            if failures == _MOST_FAILURES and self.fault is None:
                self.fault = LostError(
                    f"The model's process died {failures} times while it loaded the model. `bimedix-edge doctor` shows "
                    "whether there is enough memory."
                )
            if self.fault is None and not self._closing:
                self._set_state("restarting")
                self.counters = replace(self.counters, n_restarts=self.counters.n_restarts + 1)
                if failures:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._end_all(_GIVEN_UP, waiting=True)
        self._set_state("failed")

    async def _run_once(self) -> bool:
        """Run a child until it ends; return whether it had the model loaded."""
        process = await child.start_async(_ENTRY)
        self._process, self.pid = process, process.pid
        was_ready = False
        try:
            assert process.stdout is not None, "`child.start_async` gives it a pipe"
            self._send(pack(OpenModel(0, self._model, self._settings)))
            # a child that cannot load the model says so; it ends when its input does
            while self.fault is None:
                frame = unpack_reply(await child.read_frame_async(process.stdout))
                was_ready = was_ready or isinstance(frame, ModelReady)
                self._take(frame)
            return was_ready
        except (EOFError, ConnectionError, FrameError):
            return was_ready
        finally:
            self._process, self.pid = None, None
            if self.state == "ready":
                self._set_state("restarting")
            self._requeue()
            self._end_all(_LOST, waiting=False)
            await child.stop_async(process, _CLOSE_S)

    def _take(self, frame: ReplyFrame) -> None:
        """Do what a frame from the child says."""
        if isinstance(frame, ModelReady):
            self.facts = frame.facts
            self._set_state("ready")
            self._dispatch()
        elif isinstance(frame, ModelRefused):
            self.fault = _error(frame)
        elif isinstance(frame, event_frame_types):
            self._take_event(frame)
        elif (future := self._calls.pop(frame.id, None)) is not None and not future.done():
            future.set_result(frame)

    def _take_event(self, frame: EventFrame) -> None:
        number, event = frame.id, frame.event
        job = self._active.get(number)
        if job is None:
            raise FrameError("An event names a request that the child does not have.")
        self._count(event)
        job.begun = True
        if isinstance(event, Token):
            job.text += event.text
        job.events.put_nowait(event)
        if isinstance(event, (Done, Failed)):
            del self._active[number]
            # an estimate for the requests that wait: the older an answer, the less it counts
            self._answer_s += 0.2 * (time.monotonic() - job.begun_s - self._answer_s)
            self._dispatch()

    def _count(self, event: ServerEvent) -> None:
        counters = self.counters
        if isinstance(event, Token):
            self.counters = replace(counters, n_generated_tokens=counters.n_generated_tokens + 1)
        elif isinstance(event, Encode) and event.done:
            self.counters = replace(counters, n_encodes=counters.n_encodes + 1)
        elif isinstance(event, Done):
            self.counters = replace(
                counters,
                n_prompt_tokens=counters.n_prompt_tokens + event.usage.prompt - event.usage.reused,
                n_reused_tokens=counters.n_reused_tokens + event.usage.reused,
                encode_s=counters.encode_s + event.timings.encode / 1e3,
                prefill_s=counters.prefill_s + event.timings.prefill / 1e3,
                decode_s=counters.decode_s + event.timings.decode / 1e3,
            )

    def _refusal(self) -> Failed | None:
        if self._closing or self.state == "failed":
            return Failed("lost", _GIVEN_UP)
        waiting, slots = len(self._line), self._settings.parallel
        if waiting + len(self._active) < slots + self._settings.queue:
            return None
        return Failed(
            "queue_full",
            f"The queue is full: {self._settings.queue} requests wait already. Ask again later.",
            place=waiting,
            retry_after_s=float(max(1, math.ceil(self._answer_s * (waiting + 1) / slots))),
        )

    def _dispatch(self) -> None:
        """Give the child a request for each free slot, and the other requests their places in the queue."""
        while self.state == "ready" and len(self._line) and len(self._active) < self._settings.parallel:
            job = self._line.take()
            job.begun_s = time.monotonic()
            self._active[job.number] = job
            try:
                self._send(pack(Generate(job.number, job.request)))
            except FrameError as error:
                del self._active[job.number]
                sentence = str(error) if isinstance(error, UnsendableText) else _UNSENDABLE
                job.events.put_nowait(Failed("prompt", sentence))
        self._announce_places()

    def _announce_places(self) -> None:
        for place, job in enumerate(self._line, 1):
            if job.place != place:
                job.place = place
                job.events.put_nowait(Queued(place))

    def _requeue(self) -> None:
        """Put the requests that the child had not begun back into the queue, the oldest first; each of them once."""
        for number, job in sorted(self._active.items(), reverse=True):
            if not (job.begun or job.requeued or job.left or self._closing):
                del self._active[number]
                job.requeued = True
                self._line.put_first(job.request.tenant, job)

    def _end_all(self, message: str, *, waiting: bool) -> None:
        """End the requests that the child has; with `waiting`, those in the queue as well."""
        jobs = list(self._active.values())
        self._active.clear()
        while waiting and len(self._line):
            jobs.append(self._line.take())
        for job in jobs:
            job.events.put_nowait(Failed("lost", message, text_so_far=job.text))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(LostError(message))
        self._calls.clear()

    async def _call(self, frame: RequestFrame, wanted: type[_Reply]) -> _Reply:
        """Return the reply to a frame.

        Raises:
            BimedixEdgeError: The child replied with an error, or there is no child.
        """
        if self.state != "ready" or self._process is None:
            raise LostError(f"The model is {self.state}. Ask again later.")
        try:
            pieces = pack(frame)
        except FrameError as error:
            raise PromptError(str(error) if isinstance(error, UnsendableText) else _UNSENDABLE) from None
        future = self._calls[frame.id] = asyncio.get_running_loop().create_future()
        try:
            self._send(pieces)
            reply = await future
        finally:
            self._calls.pop(frame.id, None)
        if isinstance(reply, ErrorReply):
            raise _error(reply)
        if not isinstance(reply, wanted):
            raise LostError(_LOST)
        return reply

    def _send(self, pieces: list[bytes]) -> None:
        if self._process is None or self._process.stdin is None or self._process.stdin.is_closing():
            return  # it has just ended, and `_run_once` is about to see that
        self._process.stdin.writelines(pieces)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()


def _error(reply: ModelRefused | ErrorReply) -> BimedixEdgeError:
    """Return the child's error, of the same class."""
    kind = getattr(errors, reply.error) if reply.error in errors.__all__ else BimedixEdgeError
    error = kind(reply.message)
    assert isinstance(error, BimedixEdgeError)
    return error
