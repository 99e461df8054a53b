"""The reader's side of an answer: an iterator of events that can be closed, cancelled, or lost, at any time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from bimedix_edge.decoder.decoder import Aborted
from bimedix_edge.engine.generation import Generation, ImageSource, Request
from bimedix_edge.engine.lookahead import Lookahead
from bimedix_edge.engine.scheduler import Scheduler
from bimedix_edge.errors import UsageError
from bimedix_edge.events import Done, Event, Token

__all__ = ["read_answer"]


def read_answer(request: Request, images: ImageSource, scheduler: Scheduler) -> Generator[Event, None, None]:
    """Let the scheduler make an answer, and yield what happens.

    The answer is written ahead of who reads it. When it is cancelled, what was written and not read yet is left out, so
    that it ends for everybody where it was cancelled. The iterator ends, however it does, when nothing works on the
    answer any more.

    Raises:
        UsageError: another answer is being read in the same conversation.
        BimedixEdgeError: what failed in the engine.
    """
    session = request.session
    if session.taken:
        raise UsageError("Expected one answer at a time in a conversation, but one is being written; wait for it.")
    session.taken = True
    try:
        generation = scheduler.generation(request, images)
        with Lookahead(generation.should_stop, Aborted) as generation.lookahead:
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
    """Return how an answer ended of which only some tokens were read before it was cancelled."""
    return replace(
        done,
        text="".join(token.text for token in read),
        token_ids=tuple(token.id for token in read),
        stop_reason="cancelled",
        usage=replace(done.usage, generated=len(read)),
    )
