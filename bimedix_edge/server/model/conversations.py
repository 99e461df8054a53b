"""Requests as prompts, and which of a holder's sessions a prompt goes on with.

A client sends the whole conversation each time. What of it is in the KV cache already is found by content: among the
holder's sessions that are not in use, that one is taken which has most in common with the prompt from its beginning on,
item by item, an image being known by the key of its pixels. The holder's name is part of that key, so nothing that was
computed about one holder's image can be found by another, whatever else went wrong.
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
from bimedix_edge.server.link import messages
from bimedix_edge.server.link.messages import GenerateRequest, ImagePart, TextPart

__all__ = ["Conversations", "load_image"]

# sessions whose place in the KV cache may still be of use; the table of sequences evicts the oldest of them itself
_MOST_IDLE = 64
_MOST_ANSWERS = 1024
# less than this beyond what all prompts begin with is not worth taking another conversation's session for
_LEAST_SHARED = 16


@dataclass
class _Held:
    """A session, and whose it is."""

    holder: str
    chat: str | None
    session: Session


class Conversations:
    """Prompts and sessions of all holders; safe to use from several threads.

    Args:
        runtime: the opened model.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._engine = runtime.engine
        self._spec = runtime.manifest.prompt
        self._lock = threading.Lock()
        self._idle: list[_Held] = []
        # an answer's text does not always tokenize into the tokens that were written, which are what the cache holds
        self._answers: collections.OrderedDict[tuple[str, bytes, str], tuple[int, ...]] = collections.OrderedDict()

    def prompt(self, request: GenerateRequest) -> list[Item]:
        """Return a request's prompt, its images decoded.

        Raises:
            PromptError: the messages are not in turn, or a text is empty or not valid.
            ImageError, UsageError: an image cannot be read, or not so.
        """
        if request.messages is None:
            text = check_text(request.prompt or "", what="prompt")
            return self._engine.items([*([Special(BOS)] * self._spec.bos), Text(text)])
        given = list(request.messages)
        spec = self._spec
        if given and given[0].role == "system":
            spec = replace(spec, system=check_text(_text(given.pop(0)), what="system message"))
        plain = [PromptMessage(_role(message), _text(message), len(_images(message))) for message in given]
        render(plain, spec)  # says what is wrong with them
        items = self._engine.items(opening(spec))
        for message, told in zip(given, plain, strict=True):
            if told.role == "user":
                shown = [self._shown(part, request.holder) for part in _images(message)]
                items += self._engine.items(user_turn(told.text, told.images), shown)
            else:
                items += self._engine.items(answer_header())
                items += self._answer(request.holder, items, told.text)
                items += self._engine.items(closing())
        return items + self._engine.items(answer_header())

    @contextlib.contextmanager
    def session(self, request: GenerateRequest, prompt: Sequence[Item]) -> Iterator[Session]:
        """Lend the session that knows most of a prompt, or a new one."""
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
        """Keep the tokens of an answer, for when its text comes back as part of the conversation."""
        if done.stop_reason == "stop" or not done.token_ids:
            return  # its tokens say more than its text
        with self._lock:
            self._answers[request.holder, _digest(prompt), done.text] = done.token_ids
            if len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)

    def _shown(self, part: ImagePart, holder: str) -> PromptImage:
        return self._engine.prompt_image(load_image(part), scope=f"{holder}|")

    def _answer(self, holder: str, before: Sequence[Item], text: str) -> Sequence[Item]:
        with self._lock:
            known = self._answers.get((holder, _digest(before), text))
        return known if known is not None else self._engine.items([Text(text)])

    def _take(self, request: GenerateRequest, prompt: Sequence[Item]) -> _Held:
        with self._lock:
            best = max(
                (held for held in self._idle if held.holder == request.holder),
                key=lambda held: self._worth(held, request, prompt),
                default=None,
            )
            if best is not None and self._worth(best, request, prompt) > 0:
                self._idle.remove(best)
                return best
        return _Held(request.holder, request.chat, self._engine.session())

    def _worth(self, held: _Held, request: GenerateRequest, prompt: Sequence[Item]) -> int:
        """Return how many positions taking a session saves, 0 if that would cost another conversation more."""
        shared = common_prefix(held.session.items, prompt)
        if request.chat is not None and held.chat == request.chat:
            return shared + 1
        saved = shared - len(self._engine.items(opening(self._spec)))
        lost = len(held.session.items) - shared
        return shared if saved >= max(_LEAST_SHARED, lost) else 0


def load_image(part: ImagePart) -> Picture:
    """Decode an image part.

    Raises:
        ImageError, UsageError: as `imaging.picture.load_picture`.
    """
    frame = "middle" if part.frame is None else part.frame
    return load_picture(part.data, frame=frame, window=part.window)


def _role(message: messages.Message) -> Literal["user", "assistant"]:
    if message.role == "system":
        raise PromptError("Expected one system message, and that first, but there is another; merge or remove it.")
    return message.role


def _text(message: messages.Message) -> str:
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))


def _images(message: messages.Message) -> list[ImagePart]:
    return [part for part in message.parts if isinstance(part, ImagePart)]


def _digest(items: Sequence[Item]) -> bytes:
    words = (item.image.key if isinstance(item, ImageRow) else str(item) for item in items)
    return hashlib.sha256(" ".join(words).encode()).digest()
