"""Answers in progress: one or several at once, until they end or their client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from bimedix_edge.events import Done
from bimedix_edge.server.api.errors import ApiError, defect
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import Failed, GenerateRequest, Numbered

__all__ = ["EventStream", "Events", "unless_gone", "writing"]

Result = TypeVar("Result")

_HEARTBEAT_S = 10.0


class Events:
    """The events of a request's answers as they come, each with the number of its answer.

    Args:
        n_answers: How many answers there are.
    """

    def __init__(self, n_answers: int) -> None:
        self._queue: asyncio.Queue[Numbered | Exception] = asyncio.Queue()
        self._n_left = n_answers

    def put(self, item: Numbered | Exception) -> None:
        """Add an event, or an error that ends all answers."""
        self._queue.put_nowait(item)

    async def next(self) -> Numbered | None:
        """Return the next event, or None once all answers have ended; the first failure ends them all.

        Cancelling the call loses no event.
        """
        if not self._n_left:
            return None
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._n_left = 0 if isinstance(item[1], Failed) else self._n_left - isinstance(item[1], Done)
        return item

    async def __aiter__(self) -> AsyncIterator[Numbered]:
        """Yield the remaining events."""
        while (item := await self.next()) is not None:
            yield item


@contextlib.asynccontextmanager
async def writing(model: ModelProcess, requests: Sequence[GenerateRequest]) -> AsyncIterator[Events]:
    """Have the model answer while the block runs; answers that are not complete at its end are cancelled.

    Args:
        model: The model's process.
        requests: The request for each answer.
    """
    written = Events(len(requests))

    async def pump(index: int, request: GenerateRequest) -> None:
        try:
            async with contextlib.aclosing(model.generate(request)) as events:
                async for event in events:
                    written.put((index, event))
        except Exception as error:
            # `Events.next` raises it
            written.put(error)

    tasks = [asyncio.ensure_future(pump(index, request)) for index, request in enumerate(requests)]
    try:
        yield written
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancel it when the client leaves.

    Raises:
        ClientDisconnect: The client has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream:
    """A response of server-sent events.

    Args:
        chunks: The data of each event; an `ApiError` that the iterator raises becomes the last event.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await unless_gone(receive, self._write(send))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        async def out(text: bytes) -> None:
            await send({"type": "http.response.body", "body": text + b"\n\n", "more_body": True})

        try:
            async for chunk in _with_pauses(self._chunks):
                # a comment keeps proxies from closing the stream, and shows us whether the client is there
                await out(b": waiting" if chunk is None else b"data: " + chunk)
        except ApiError as error:
            await out(b"data: " + error.body())
        except Exception:
            # the status is sent already, and the client must not take the answer for complete
            await out(b"data: " + defect().body())
            raise


async def _with_pauses(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes | None]:
    """Yield the chunks, and None after each interval without one."""
    upcoming = asyncio.ensure_future(anext(chunks, None))
    try:
        while True:
            done, _ = await asyncio.wait({upcoming}, timeout=_HEARTBEAT_S)
            if not done:
                yield None
                continue
            if (chunk := upcoming.result()) is None:
                return
            yield chunk
            upcoming = asyncio.ensure_future(anext(chunks, None))
    finally:
        upcoming.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
