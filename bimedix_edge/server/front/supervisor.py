"""The parent's side of the model's process: it is started, restarted when it dies, and given one request a slot.

Nothing native is imported here: what can abort, run out of memory or be killed does so in the child. What a request
needs is in the parent until it ends, so those that wait when the child dies wait on, and run in the next one; so does
one that it was given and had not begun, once, for it may have been what ended the child. Those it was working on end
with `Failed("lost")` and the text so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bimedix_edge import errors
from bimedix_edge.errors import BimedixEdgeError, LostError
from bimedix_edge.events import Done, Encode, Token
from bimedix_edge.server.front.waiting import WaitingLine
from bimedix_edge.server.link.messages import (
    Failed,
    GenerateRequest,
    ImagePart,
    Look,
    ModelFacts,
    Queued,
    ServerEvent,
    State,
    Stats,
)
from bimedix_edge.server.link.wire import PREFIX, Frame, WireError, lengths, pack, unpack
from bimedix_edge.settings import Settings

__all__ = ["ModelProcess"]

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from bimedix_edge.server.model.process import main; main()"
)
# one that dies so often before it is ready is given up
_MOST_FAILURES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_CLOSE_S = 5.0
_FIRST_GUESS_S = 10.0
_LOST = "Expected the model's process to finish the answer, but it ended; ask again, it is being restarted."
_GIVEN_UP = "Expected the model's process to start, but it failed; see the server's first message, and start it again."


class _Job:
    """One request, from its arrival to its end."""

    def __init__(self, request: GenerateRequest, number: int) -> None:
        self.request = request
        self.number = number
        self.events: asyncio.Queue[ServerEvent] = asyncio.Queue()
        self.place: int | None = None
        self.text = ""
        self.begun_s = 0.0
        # a request is given to the next child, too, unless it was begun, or was given twice, or nobody reads it
        self.begun = self.given_again = self.left = False


class ModelProcess:
    """The model in a process of its own, seen from the server's event loop; every method belongs to that loop.

    Args:
        settings: of the runtime, `parallel` and `queue` among them.
        model: a bundle's directory or its name in the store; None is what `Runtime.open` takes then.

    Attributes:
        state: `loading`, `ready`, `restarting` after it died, or `failed` when it was given up.
        facts: about the model; None until it was ready once.
        fault: why it failed; None unless it did.
        pid: of the child, None while there is none.
    """

    def __init__(self, settings: Settings, model: str | Path | None = None) -> None:
        self.state: State = "loading"
        self.facts: ModelFacts | None = None
        self.fault: BimedixEdgeError | None = None
        self.pid: int | None = None
        self._settings = settings
        self._model = None if model is None else str(model)
        self._numbers = itertools.count(1)
        self._line: WaitingLine[_Job] = WaitingLine()
        self._active: dict[int, _Job] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._stats = Stats()
        self._answer_s = _FIRST_GUESS_S

    async def start(self) -> None:
        """Begin to start the child; `ready` waits for it, and requests may come already."""
        self._task = asyncio.create_task(self._keep_running())

    async def ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            BimedixEdgeError: what the child said why it cannot load it, with that error's class and exit code; a
                `LostError` if it died again and again.
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
        self._end_all("Expected the server to answer, but it is being stopped; ask again later.", waiting=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[ServerEvent, None]:
        """Yield what happens to a request; closing the iterator stops it within a step.

        Yields:
            `Queued` while it waits, whenever its place changes; `Encode`, `Prefill` and `Token`; last, `Done` or
            `Failed`.
        """
        if (refused := self._refusal()) is not None:
            yield refused
            return
        job = _Job(request, next(self._numbers))
        self._line.put(request.holder, job)
        self._dispatch()
        try:
            while True:
                event = await job.events.get()
                yield event
                if isinstance(event, (Done, Failed)):
                    return
        finally:
            job.left = True
            if self._line.remove(request.holder, job):
                self._tell_places()
            elif job.number in self._active:
                self._send(Frame("cancel", job.number))

    async def tokenize(self, text: str) -> list[int]:
        """Return the tokens of plain text.

        Raises:
            LostError: the model is not there.
        """
        return list(await self._call("tokenize", text))

    async def detokenize(self, tokens: list[int]) -> str:
        """Return the text of tokens.

        Raises:
            UsageError: one is none of the vocabulary's.
            LostError: the model is not there.
        """
        return str(await self._call("detokenize", tokens))

    async def look(self, image: ImagePart) -> Look:
        """Return what the model sees of a picture, which the child decodes.

        Raises:
            ImageError, UsageError: as `imaging.picture.load_picture`.
            LostError: the model is not there, or died of it.
        """
        look = await self._call("look", image)
        assert isinstance(look, Look)
        return look

    async def stats(self) -> Stats:
        """Return the counters; the gauges of the KV cache are 0 while the model is not there."""
        used = 0
        with contextlib.suppress(LostError):
            used = int(await self._call("kv_used", None))
        return replace(
            self._stats,
            n_queued=len(self._line),
            n_active=len(self._active),
            n_slots=self._settings.parallel,
            kv_used=used,
            kv_cells=0 if self.facts is None else self.facts.n_ctx,
        )

    async def _keep_running(self) -> None:
        failures, pause_s = 0, _FIRST_PAUSE_S
        # asked again here, since `wait_for` may lose a cancellation that comes when it ends
        while self.fault is None and not self._closing:
            was_ready = await self._run_once()
            failures, pause_s = (0, _FIRST_PAUSE_S) if was_ready else (failures + 1, pause_s)
            if failures == _MOST_FAILURES and self.fault is None:
                self.fault = LostError(
                    f"Expected the model's process to load the model, but it died {failures} times while it did; see "
                    "whether the memory suffices (`bimedix-edge doctor`)."
                )
            if self.fault is None and not self._closing:
                self._set_state("restarting")
                self._stats = replace(self._stats, n_restarts=self._stats.n_restarts + 1)
                if failures:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._end_all(_GIVEN_UP, waiting=True)
        self._set_state("failed")

    async def _run_once(self) -> bool:
        """Run a child until it ends; return whether it had the model loaded."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            _START,
            json.dumps([place for place in sys.path if place]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._process, self.pid = process, process.pid
        was_ready = False
        try:
            self._send(Frame("open", 0, {"model": self._model, "settings": _plain(self._settings)}))
            # a child that cannot load the model says so, and ends when it is asked nothing more
            while self.fault is None:
                frame = await _read(process)
                was_ready = was_ready or frame.kind == "ready"
                self._take(frame)
            return was_ready
        except (asyncio.IncompleteReadError, ConnectionError, WireError):
            return was_ready
        finally:
            self._process, self.pid = None, None
            if self.state == "ready":
                self._set_state("restarting")
            self._wait_again()
            self._end_all(_LOST, waiting=False)
            await _end(process)

    def _take(self, frame: Frame) -> None:
        """Do what a frame from the child says."""
        if frame.kind == "ready":
            self.facts = frame.value
            self._set_state("ready")
            self._dispatch()
        elif frame.kind == "failed":
            self.fault = _error(frame.value)
        elif frame.kind == "event":
            self._take_event(frame.id, frame.value)
        elif (future := self._calls.pop(frame.id, None)) is not None and not future.done():
            if frame.kind == "error":
                future.set_exception(_error(frame.value))
            else:
                future.set_result(frame.value)

    def _take_event(self, number: int, event: ServerEvent) -> None:
        job = self._active.get(number)
        if job is None:
            raise WireError("an event of a request that the child does not have")
        self._count(event)
        job.begun = True
        if isinstance(event, Token):
            job.text += event.text
        job.events.put_nowait(event)
        if isinstance(event, (Done, Failed)):
            del self._active[number]
            # how long the next ones will wait: the older the answer, the less it counts
            self._answer_s += 0.2 * (time.monotonic() - job.begun_s - self._answer_s)
            self._dispatch()

    def _count(self, event: ServerEvent) -> None:
        stats = self._stats
        if isinstance(event, Token):
            self._stats = replace(stats, n_generated_tokens=stats.n_generated_tokens + 1)
        elif isinstance(event, Encode) and event.done:
            self._stats = replace(stats, n_encodes=stats.n_encodes + 1)
        elif isinstance(event, Done):
            self._stats = replace(
                stats,
                n_prompt_tokens=stats.n_prompt_tokens + event.usage.prompt - event.usage.reused,
                n_reused_tokens=stats.n_reused_tokens + event.usage.reused,
                encode_s=stats.encode_s + event.timings.encode / 1e3,
                prefill_s=stats.prefill_s + event.timings.prefill / 1e3,
                decode_s=stats.decode_s + event.timings.decode / 1e3,
            )

    def _refusal(self) -> Failed | None:
        if self._closing or self.state == "failed":
            return Failed("lost", _GIVEN_UP)
        waiting, slots = len(self._line), self._settings.parallel
        if waiting + len(self._active) < slots + self._settings.queue:
            return None
        return Failed(
            "queue_full",
            f"Expected at most {self._settings.queue} requests to wait, but as many do; ask again later.",
            place=waiting,
            retry_after_s=float(max(1, math.ceil(self._answer_s * (waiting + 1) / slots))),
        )

    def _dispatch(self) -> None:
        """Give the child as many requests as it has slots; tell the others their places."""
        while self.state == "ready" and len(self._line) and len(self._active) < self._settings.parallel:
            job = self._line.take()
            job.begun_s = time.monotonic()
            self._active[job.number] = job
            try:
                self._send(Frame("generate", job.number, job.request))
            except WireError:
                del self._active[job.number]
                job.events.put_nowait(
                    Failed("prompt", "Expected a request of at most 1 GiB, but it is larger; shorten it.")
                )
        self._tell_places()

    def _tell_places(self) -> None:
        for place, job in enumerate(self._line, 1):
            if job.place != place:
                job.place = place
                job.events.put_nowait(Queued(place))

    def _wait_again(self) -> None:
        """Let what the child was given and had not begun wait for the next one, the oldest first; once each."""
        for number, job in sorted(self._active.items(), reverse=True):
            if not (job.begun or job.given_again or job.left or self._closing):
                del self._active[number]
                job.given_again = True
                self._line.put_first(job.request.holder, job)

    def _end_all(self, message: str, *, waiting: bool) -> None:
        """End what the child was working on, and what waits, too, if there will be no other child."""
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

    async def _call(self, kind: str, value: Any) -> Any:
        if self.state != "ready" or self._process is None:
            raise LostError(f"Expected the model to be ready, but it is {self.state}; ask again later.")
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(Frame(kind, number, value))
            return await future
        finally:
            self._calls.pop(number, None)

    def _send(self, frame: Frame) -> None:
        pieces = pack(frame)
        if self._process is None or self._process.stdin is None or self._process.stdin.is_closing():
            return  # it has just ended, and `_run_once` is about to see that
        self._process.stdin.writelines(pieces)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()


async def _read(process: asyncio.subprocess.Process) -> Frame:
    assert process.stdout is not None
    n_header, n_blobs = lengths(await process.stdout.readexactly(PREFIX.size))
    return unpack(await process.stdout.readexactly(n_header), await process.stdout.readexactly(n_blobs))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let a child end: by itself if it can, which it does when nobody can ask it any more."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _CLOSE_S)
    except asyncio.TimeoutError:
        pass  # it is killed
    finally:
        # also when this wait itself is cancelled, which whoever closes the server waits to see
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}


def _error(value: Any) -> BimedixEdgeError:
    """Return the exception that the child met, of the same class."""
    kind = getattr(errors, value["kind"], BimedixEdgeError) if value["kind"] in errors.__all__ else BimedixEdgeError
    error = kind(value["message"])
    assert isinstance(error, BimedixEdgeError)
    return error
