"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from bimedix_edge.server.api.errors import failure
from bimedix_edge.server.api.fields import SamplingFields
from bimedix_edge.server.api.requests import ChatRequest, CompletionRequest
from bimedix_edge.server.api.shapes import ChatShape, CompletionShape
from bimedix_edge.server.api.translate import chat_requests, completion_requests
from bimedix_edge.server.front.service import Service, answer, read, route
from bimedix_edge.server.front.streams import Events, EventStream, unless_gone, writing
from bimedix_edge.server.link.messages import Failed, GenerateRequest, Numbered, Queued

__all__ = ["completion_routes"]

# a stream begins with its status: a failure before this time has its own status, a later one is an event
_MOST_SILENCE_S = 5.0


def completion_routes(service: Service) -> list[Route]:
    """Return the routes."""
    return [
        route("POST", "/v1/chat/completions", _chat, service),
        route("POST", "/v1/completions", _complete, service),
    ]


async def _chat(service: Service, request: Request) -> ASGIApp:
    asked = await read(service, request, ChatRequest)
    facts = service.facts()
    tenant: str = request.state.tenant
    requests = await chat_requests(asked, tenant, facts, service.seed, service.limits.images)
    return await _respond(service, request, asked, requests, ChatShape(facts, requests, asked.n or 1))


async def _complete(service: Service, request: Request) -> ASGIApp:
    asked = await read(service, request, CompletionRequest)
    facts = service.facts()
    requests = completion_requests(asked, request.state.tenant, facts, service.seed)
    return await _respond(service, request, asked, requests, CompletionShape(facts, requests, asked.n or 1))


async def _respond(
    service: Service,
    request: Request,
    asked: SamplingFields,
    requests: Sequence[GenerateRequest],
    shape: ChatShape | CompletionShape,
) -> ASGIApp:
    stack: contextlib.AsyncExitStack = request.state.until_answered
    events = await stack.enter_async_context(writing(service.model, requests))
    if not asked.stream:
        return answer(await unless_gone(request.receive, shape.whole(events)))
    options = asked.stream_options
    progress = bool(options and options.bimedix_progress)
    begun = await unless_gone(request.receive, _begin(events, at_once=progress))
    usage = bool(options and options.include_usage)
    return EventStream(shape.chunks(begun, usage=usage, progress=progress))


async def _begin(events: Events, *, at_once: bool) -> AsyncIterator[Numbered]:
    """Wait until the work has begun, and return all events.

    Args:
        events: Events of the answers.
        at_once: Whether a place in the queue is enough to begin the stream.

    Raises:
        ApiError: The request failed before.
    """
    held: list[Numbered] = []

    async def wait() -> None:
        while (item := await events.next()) is not None:
            if isinstance(item[1], Failed):
                raise failure(item[1])
            held.append(item)
            if at_once or not isinstance(item[1], Queued):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(wait(), _MOST_SILENCE_S)
    return _all(held, events)


async def _all(held: Sequence[Numbered], events: Events) -> AsyncIterator[Numbered]:
    for item in held:
        yield item
    async for item in events:
        yield item
