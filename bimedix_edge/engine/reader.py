"""The reader's side of an answer: an iterator of events that can be closed, cancelled, or lost, at any time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from bimedix_edge.decoder.decoder import Aborted
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.generation import Generation
from bimedix_edge.engine.lookahead import Lookahead
from bimedix_edge.engine.request import EngineRequest
from bimedix_edge.engine.scheduler import Scheduler
from bimedix_edge.errors import UsageError
from bimedix_edge.events import Done, Event, Token

__all__ = ["read_answer"]


def read_answer(
    request: EngineRequest, embeddings: ImageEmbeddings, scheduler: Scheduler
) -> Generator[Event, None, None]:
    """Submit a request to the scheduler, and yield the events of its answer.

    The answer is generated ahead of its reader. When it is cancelled, tokens that were not read yet are left out, so
    the answer ends where the reader cancelled it. However the iterator ends, nothing works on the answer any more then.

    Raises:
        UsageError: Another answer is being read in the same conversation.
        BimedixEdgeError: The engine failed.
    """
    session = request.session
    if session.taken:
        raise UsageError("The conversation has an answer in progress already. Wait until it ends.")
    session.taken = True
    try:
        generation = scheduler.generation(request, embeddings)
        with Lookahead(generation.should_stop, Aborted) as generation.images.lookahead:
            scheduler.submit(generation)
            try:
                done = yield from _read(generation)
            finally:
                generation.abandon()
                scheduler.wait_for(generation)
    finally:
        session.taken = False
    yield done


def _read(generation: Generation) -> Generator[Event, None, Done]:
    read: list[Token] = []
    while True:
        event = generation.events.get()
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Done):
            return event if len(read) == len(event.token_ids) else _cut(event, read)
        if isinstance(event, Token):
            if generation.should_stop():
                continue
            read.append(event)
        yield event


def _cut(done: Done, read: list[Token]) -> Done:
    """Return the end of an answer that was cancelled before all of its tokens were read."""
    return replace(
        done,
        text="".join(token.text for token in read),
        token_ids=tuple(token.id for token in read),
        stop_reason="cancelled",
        usage=replace(done.usage, generated=len(read)),
    )
