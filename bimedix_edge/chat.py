"""A conversation over the engine: questions with images in, events out, history kept."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from bimedix_edge.engine.engine import Engine
from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.engine.sessions import Item
from bimedix_edge.errors import HardwareError, ModelError, UsageError
from bimedix_edge.events import Cancel, Done, Event, Token
from bimedix_edge.imaging.picture import ImageSource, Picture, load_picture
from bimedix_edge.prompt import PromptSpec, answer_header, closing, opening, user_turn
from bimedix_edge.sampling import Sampling

__all__ = ["Chat", "Turn"]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: Question as the user wrote it.
        pictures: Images of the question.
        answer: Answer of the model, possibly cut short.
        done: How the answer ended; None if the caller stopped reading it, or the engine failed.
        interrupted: Whether the engine failed while the model answered.
    """

    question: str
    pictures: tuple[Picture, ...]
    answer: str
    done: Done | None
    interrupted: bool = False


@dataclass(frozen=True)
class _Past:
    """A turn, and the items of the whole conversation up to its end."""

    turn: Turn
    items: list[Item]


class Chat:
    """A conversation, made by `Runtime.chat`; it has one answer in progress at a time.

    A follow-up question costs only its own tokens: everything before it stays in the KV cache, images included.
    """

    def __init__(self, engine: Engine, prompt: PromptSpec, sampling: Sampling, max_tokens: int) -> None:
        self._engine = engine
        self._prompt = prompt
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._session = engine.session()
        self._opening: list[Item] = engine.items(opening(prompt))
        self._past: tuple[_Past, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Return the conversation so far."""
        return tuple(past.turn for past in self._past)

    @property
    def sampling(self) -> Sampling:
        """Return how tokens are chosen unless a question says otherwise."""
        return self._sampling

    def ask(
        self,
        text: str,
        images: Sequence[ImageSource | Picture] = (),
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[Event]:
        """Ask a question and yield the answer as it is generated.

        `ask` reads the images and checks the prompt; the engine works as the events are read. The turn becomes part of
        the conversation as soon as the answer has a token, also if it is then cancelled or the iterator is closed. A
        question that failed leaves no trace.

        Args:
            text: Question, any Unicode; special tokens in it are plain text.
            images: Paths, file contents, uint8 (h, w, 3) pixels, or Pillow images.
            sampling: How tokens are chosen; by default the conversation's.
            max_tokens: Most tokens of the answer; by default the conversation's.
            cancel: Lets a signal handler or another thread stop the answer.

        Returns:
            An iterator of `Encode`, `Prefill` and `Token` events that ends with one `Done`.

        Raises:
            ImageError: An image cannot be read.
            PromptError: The text is empty or not valid, or the prompt is longer than the context (by how much).
            UsageError: The conversation has an answer in progress.
        """
        pictures = tuple(image if isinstance(image, Picture) else load_picture(image) for image in images)
        turn = Turn(text, pictures, "", None)
        return self._answer(self._past, turn, sampling or self._sampling, max_tokens or self._max_tokens, cancel)

    def regenerate(self, *, sampling: Sampling | None = None, cancel: Cancel | None = None) -> Iterator[Event]:
        """Ask the last question again in place of its answer, by default with another seed.

        Raises:
            UsageError: There is no question yet.
        """
        if not self._past:
            raise UsageError("There is no question to answer again. Ask one first.")
        last = self._past[-1].turn
        fresh = sampling or replace(self._sampling, seed=secrets.randbits(32))
        return self._answer(self._past[:-1], last, fresh, self._max_tokens, cancel)

    def clear(self) -> None:
        """Forget the conversation; embeddings of its images stay reusable."""
        self._engine.release(self._session)
        self._session = self._engine.session()
        self._past = ()

    def move(self, engine: Engine) -> None:
        """Go on with another engine of the same model; the next question evaluates the conversation again."""
        self._engine = engine
        self._session = engine.session()

    def close(self) -> None:
        """Free this conversation's part of the KV cache."""
        self._engine.release(self._session)

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, past: tuple[_Past, ...], turn: Turn, sampling: Sampling, max_tokens: int, cancel: Cancel | None
    ) -> Iterator[Event]:
        """Start answering `turn` after `past`; the result replaces the history once it has a token."""
        before = past[-1].items if past else self._opening
        segments = [*(closing() if past else ()), *user_turn(turn.question, len(turn.pictures)), *answer_header()]
        shown = [self._engine.prompt_image(picture) for picture in turn.pictures]
        prompt = [*before, *self._engine.items(segments, shown)]
        events = self._engine.generate(self._session, prompt, GenerationOptions(sampling, max_tokens), cancel)
        return self._record(events, past, turn, prompt)

    def _record(
        self, events: Generator[Event, None, None], past: tuple[_Past, ...], turn: Turn, prompt: list[Item]
    ) -> Iterator[Event]:
        tokens: list[int] = []
        text = ""
        done, failed = None, False
        try:
            for event in events:
                if isinstance(event, Token):
                    tokens.append(event.id)
                    text += event.text
                elif isinstance(event, Done):
                    done, text = event, event.text
                yield event
        except (ModelError, HardwareError):
            failed = True
            raise
        finally:
            events.close()
            if tokens or (done is not None and done.stop_reason == "end"):
                self._past = (
                    *past,
                    _Past(replace(turn, answer=text, done=done, interrupted=failed), [*prompt, *tokens]),
                )
