"""Requests as prompts, and which of a tenant's sessions a prompt continues.

A client sends the whole conversation each time. What of it is in the KV cache already is found by content: of the
tenant's idle sessions, the one with the longest common prefix is taken. Prefixes are compared item by item, and an
image counts as equal when the key of its pixels does. The tenant's name is part of that key, so one tenant never finds
what was computed for another's image.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bimedix_edge.engine.sessions import ImageRow, Item, PromptImage, Session, common_prefix
from bimedix_edge.errors import PromptError
from bimedix_edge.events import Done
from bimedix_edge.imaging.picture import Picture, load_picture
from bimedix_edge.prompt import (
    BOS,
    PromptMessage,
    Special,
    Text,
    answer_header,
    check_text,
    closing,
    opening,
    render,
    user_turn,
)
from bimedix_edge.runtime import Runtime
from bimedix_edge.server.link.messages import GenerateRequest, ImagePart, InputMessage, TextPart

__all__ = ["Conversations", "load_image"]

# sessions whose cells in the KV cache may still be of use; the table of sequences evicts the oldest of them itself
_MOST_IDLE = 64
_MOST_ANSWERS = 1024
# a prompt takes another conversation's session only if they share this many positions beyond the system prompt
_LEAST_SHARED = 16


@dataclass
class _Held:
    """A session, with its tenant and the name of its chat."""

    tenant: str
    chat: str | None
    session: Session


class Conversations:
    """Prompts and sessions of all tenants; safe to use from several threads.

    Args:
        runtime: The opened model.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._engine = runtime.engine
        self._spec = runtime.manifest.prompt
        self._lock = threading.Lock()
        self._idle: list[_Held] = []
        # the KV cache holds the tokens that were decoded, and an answer's text need not tokenize into the same ones
        self._answers: collections.OrderedDict[tuple[str, bytes, str], tuple[int, ...]] = collections.OrderedDict()

    def prompt(self, request: GenerateRequest) -> list[Item]:
        """Return a request's prompt, its images decoded.

        Raises:
            PromptError: Questions and answers do not alternate, or a text is empty or not valid.
            ImageError, UsageError: An image cannot be read, or not with the window or frame asked for.
        """
        if request.messages is None:
            text = check_text(request.prompt or "", what="prompt")
            return self._engine.items([*([Special(BOS)] * self._spec.bos), Text(text)])
        given = list(request.messages)
        spec = self._spec
        if given and given[0].role == "system":
            spec = replace(spec, system=check_text(_text(given.pop(0)), what="system message"))
        plain = [PromptMessage(_role(message), _text(message), len(_images(message))) for message in given]
        render(plain, spec)  # raises what is wrong with them
        items = self._engine.items(opening(spec))
        for message, turn in zip(given, plain, strict=True):
            if turn.role == "user":
                shown = [self._shown(part, request.tenant) for part in _images(message)]
                items += self._engine.items(user_turn(turn.text, turn.images), shown)
            else:
                items += self._engine.items(answer_header())
                items += self._answer(request.tenant, items, turn.text)
                items += self._engine.items(closing())
        return items + self._engine.items(answer_header())

    @contextlib.contextmanager
    def session(self, request: GenerateRequest, prompt: Sequence[Item]) -> Iterator[Session]:
        """Lend the session that has most of a prompt in the KV cache, or a new one."""
        held = self._take(request, prompt)
        try:
            yield held.session
        finally:
            held.chat = request.chat
            with self._lock:
                self._idle.append(held)
                spare = self._idle[:-_MOST_IDLE]
                del self._idle[:-_MOST_IDLE]
            for old in spare:
                self._engine.release(old.session)

    def remember(self, request: GenerateRequest, prompt: Sequence[Item], done: Done) -> None:
        """Keep the tokens of an answer for the next turn, when its text comes back as part of the conversation."""
        if done.stop_reason == "stop" or not done.token_ids:
            return  # its tokens say more than its text, which ends before the stop text
        with self._lock:
            self._answers[request.tenant, _digest(prompt), done.text] = done.token_ids
            if len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)

    def _shown(self, part: ImagePart, tenant: str) -> PromptImage:
        return self._engine.prompt_image(load_image(part), scope=f"{tenant}|")

    def _answer(self, tenant: str, before: Sequence[Item], text: str) -> Sequence[Item]:
        with self._lock:
            known = self._answers.get((tenant, _digest(before), text))
        return known if known is not None else self._engine.items([Text(text)])

    def _take(self, request: GenerateRequest, prompt: Sequence[Item]) -> _Held:
        with self._lock:
            best = max(
                (held for held in self._idle if held.tenant == request.tenant),
                key=lambda held: self._worth(held, request, prompt),
                default=None,
            )
            if best is not None and self._worth(best, request, prompt) > 0:
                self._idle.remove(best)
                return best
        return _Held(request.tenant, request.chat, self._engine.session())

    def _worth(self, held: _Held, request: GenerateRequest, prompt: Sequence[Item]) -> int:
        """Return how many positions a session saves, or 0 if taking it costs its own conversation more."""
        shared = common_prefix(held.session.items, prompt)
        if request.chat is not None and held.chat == request.chat:
            return shared + 1
        saved = shared - len(self._engine.items(opening(self._spec)))
        lost = len(held.session.items) - shared
        return shared if saved >= max(_LEAST_SHARED, lost) else 0


def load_image(part: ImagePart) -> Picture:
    """Decode an image part.

    Raises:
        ImageError, UsageError: See `imaging.picture.load_picture`.
    """
    frame = "middle" if part.frame is None else part.frame
    return load_picture(part.data, frame=frame, window=part.window)


def _role(message: InputMessage) -> Literal["user", "assistant"]:
    if message.role == "system":
        raise PromptError("A system message comes after other messages. Send only one, as the first message.")
    return message.role


def _text(message: InputMessage) -> str:
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))


def _images(message: InputMessage) -> list[ImagePart]:
    return [part for part in message.parts if isinstance(part, ImagePart)]


def _digest(items: Sequence[Item]) -> bytes:
    words = (item.image.key if isinstance(item, ImageRow) else str(item) for item in items)
    return hashlib.sha256(" ".join(words).encode()).digest()
