"""The engine's events as OpenAI's objects."""

from __future__ import annotations

import abc
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from bimedix_edge.events import Done, Encode, Logprob, Prefill, Token
from bimedix_edge.server.api.errors import ApiError, failure
from bimedix_edge.server.api.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    FinishReason,
    ImageSeen,
    ProgressEvent,
    PromptDetails,
    Provenance,
    TokenLogprob,
    TokenUsage,
    TopLogprob,
)
from bimedix_edge.server.link.messages import Failed, GenerateRequest, ModelFacts, Numbered, Queued, ServerEvent

__all__ = ["ChatShape", "CompletionShape"]

Choice = TypeVar("Choice", ChunkChoice, CompletionChoice)


@dataclass
class _Written:
    """One answer so far."""

    tokens: list[Token] = field(default_factory=list)
    n_sent_chars: int = 0
    n_sent_tokens: int = 0
    done: Done | None = None


class _Shape(abc.ABC, Generic[Choice]):
    """Makes one response, whole or as a stream.

    Args:
        facts: What the model is.
        requests: The request for each answer.
        per_prompt: How many answers each prompt has.
    """

    prefix = ""

    def __init__(self, facts: ModelFacts, requests: Sequence[GenerateRequest], per_prompt: int) -> None:
        self._facts = facts
        self._requests = requests
        self._per_prompt = per_prompt
        self._written = [_Written() for _ in requests]
        self._id = self.prefix + secrets.token_hex(12)
        self._created = int(time.time())
        self._usage: UnsetType | None = UNSET

    async def whole(self, events: AsyncIterable[Numbered]) -> bytes:
        """Return the response once all answers have ended, as JSON.

        Raises:
            ApiError: An answer failed.
        """
        async for index, event in events:
            self._take(index, event)
        return msgspec.json.encode(self._whole())

    async def chunks(self, events: AsyncIterable[Numbered], *, usage: bool, progress: bool) -> AsyncIterator[bytes]:
        """Yield the data of a stream's events, `[DONE]` last.

        Args:
            events: Events of the answers.
            usage: Whether a last chunk counts tokens; the field is null in the others then.
            progress: Whether chunks tell what happens before the first token.

        Raises:
            ApiError: An answer failed; the stream ends with it.
        """
        self._usage = None if usage else UNSET
        for index in range(len(self._requests)):
            yield self._chunk(self._first(index), notice=index == 0)
        async for index, event in events:
            self._take(index, event)
            if isinstance(event, (Queued, Encode, Prefill)):
                if progress:
                    yield self._chunk(None, progress=_progress(index, event))
            elif (choice := self._news(index)) is not None:
                yield self._chunk(choice, notice=isinstance(event, Done))
        if usage:
            yield self._chunk(None, total=self._total())
        yield b"[DONE]"

    def _take(self, index: int, event: ServerEvent) -> None:
        if isinstance(event, Failed):
            raise failure(event)
        if isinstance(event, Token):
            self._written[index].tokens.append(event)
        elif isinstance(event, Done):
            if event.stop_reason == "cancelled":
                raise ApiError(503, "lost", "The server stopped the answer before its end. Ask again.")
            self._written[index].done = event

    def _news(self, index: int) -> Choice | None:
        """Return a choice with the text and tokens that were not sent yet; None without any."""
        written = self._written[index]
        new = written.tokens[written.n_sent_tokens :]
        text = "".join(token.text for token in new)
        if written.done is not None:
            # with the text that was held back, since a stop text could have begun there
            text = written.done.text[written.n_sent_chars :]
        has_chances = any(token.logprob is not None for token in new)
        if not text and not has_chances and written.done is None:
            return None
        choice = self._delta(index, text, new if has_chances else [])
        written.n_sent_chars += len(text)
        written.n_sent_tokens += len(new)
        return choice

    def _provenance(self, index: int) -> Provenance:
        done = self._written[index].done
        assert done is not None and done.stop_reason != "cancelled", "`_take` refuses that"
        timings = done.timings
        return Provenance(
            seed=self._requests[index].sampling.seed,
            stop_reason=done.stop_reason,
            images=[ImageSeen(use.sha256, use.width_px, use.height_px, use.cached) for use in done.images],
            timings_ms={
                name: round(getattr(timings, name), 3) for name in ("encode", "prefill", "first_token", "decode")
            },
        )

    def _finish(self, index: int) -> FinishReason | None:
        done = self._written[index].done
        if done is None:
            return None
        return "length" if done.stop_reason in ("max_tokens", "context") else "stop"

    def _total(self) -> TokenUsage:
        ended = [written.done.usage for written in self._written if written.done is not None]
        # answers to one prompt share it
        prompts = ended[:: self._per_prompt]
        n_prompt, n_written = sum(each.prompt for each in prompts), sum(each.generated for each in ended)
        details = PromptDetails(sum(each.reused for each in prompts))
        return TokenUsage(n_prompt, n_written, n_prompt + n_written, details)

    @abc.abstractmethod
    def _first(self, index: int) -> Choice:
        """Return the first choice of an answer."""

    @abc.abstractmethod
    def _delta(self, index: int, text: str, new: Sequence[Token]) -> Choice:
        """Return a choice with new text, and with the log-probabilities of new tokens, if there are any."""

    @abc.abstractmethod
    def _whole(self) -> msgspec.Struct:
        """Return the response."""

    @abc.abstractmethod
    def _chunk(
        self,
        choice: Choice | None,
        *,
        notice: bool = False,
        progress: ProgressEvent | UnsetType = UNSET,
        total: TokenUsage | None = None,
    ) -> bytes:
        """Return one event of a stream."""


class ChatShape(_Shape[ChunkChoice]):
    """Responses of `/v1/chat/completions`."""

    prefix = "chatcmpl-"

    def _first(self, index: int) -> ChunkChoice:
        return ChunkChoice(index, Delta(role="assistant", content=""))

    def _delta(self, index: int, text: str, new: Sequence[Token]) -> ChunkChoice:
        finish = self._finish(index)
        return ChunkChoice(
            index,
            Delta(content=text) if text or finish is None else Delta(),
            finish,
            _chat_logprobs(new),
            UNSET if finish is None else self._provenance(index),
        )

    def _whole(self) -> ChatCompletion:
        choices = []
        for index, written in enumerate(self._written):
            finish = self._finish(index)
            assert written.done is not None and finish is not None, "all answers have ended"
            message, chances = ChatMessage(written.done.text), _chat_logprobs(written.tokens)
            choices.append(ChatChoice(index, message, finish, self._provenance(index), chances))
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._facts.name,
            system_fingerprint=self._facts.fingerprint,
            choices=choices,
            usage=self._total(),
            notice=self._facts.notice,
        )

    def _chunk(
        self,
        choice: ChunkChoice | None,
        *,
        notice: bool = False,
        progress: ProgressEvent | UnsetType = UNSET,
        total: TokenUsage | None = None,
    ) -> bytes:
        chunk = ChatChunk(
            id=self._id,
            created=self._created,
            model=self._facts.name,
            system_fingerprint=self._facts.fingerprint,
            choices=[] if choice is None else [choice],
            usage=total or self._usage,
            bimedix=progress,
            notice=self._facts.notice if notice else UNSET,
        )
        return msgspec.json.encode(chunk)


class CompletionShape(_Shape[CompletionChoice]):
    """Responses of `/v1/completions`."""

    prefix = "cmpl-"

    def _first(self, index: int) -> CompletionChoice:
        return CompletionChoice(index, "")

    def _delta(self, index: int, text: str, new: Sequence[Token]) -> CompletionChoice:
        finish = self._finish(index)
        offset = self._written[index].n_sent_chars
        provenance = UNSET if finish is None else self._provenance(index)
        return CompletionChoice(index, text, finish, _completion_logprobs(new, offset), provenance)

    def _whole(self) -> Completion:
        choices = []
        for index, written in enumerate(self._written):
            assert written.done is not None, "all answers have ended"
            chances = _completion_logprobs(written.tokens, 0)
            text, finish = written.done.text, self._finish(index)
            choices.append(CompletionChoice(index, text, finish, chances, self._provenance(index)))
        return self._completion(choices, notice=self._facts.notice, usage=self._total())

    def _chunk(
        self,
        choice: CompletionChoice | None,
        *,
        notice: bool = False,
        progress: ProgressEvent | UnsetType = UNSET,
        total: TokenUsage | None = None,
    ) -> bytes:
        choices = [] if choice is None else [choice]
        shown = self._facts.notice if notice else UNSET
        return msgspec.json.encode(
            self._completion(choices, notice=shown, usage=total or self._usage, progress=progress)
        )

    def _completion(
        self,
        choices: list[CompletionChoice],
        *,
        notice: str | UnsetType,
        usage: TokenUsage | UnsetType | None,
        progress: ProgressEvent | UnsetType = UNSET,
    ) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._facts.name,
            system_fingerprint=self._facts.fingerprint,
            choices=choices,
            usage=usage,
            bimedix=progress,
            notice=notice,
        )


def _progress(index: int, event: Queued | Encode | Prefill) -> ProgressEvent:
    if isinstance(event, Queued):
        return ProgressEvent("queued", index, place=event.place)
    if isinstance(event, Encode):
        return ProgressEvent("encode", index, image=event.image, n_images=event.n_images, done=event.done)
    return ProgressEvent("prefill", index, n_done=event.n_done, n_total=event.n_total, n_reused=event.n_reused)


def _chat_logprobs(tokens: Sequence[Token]) -> ChatLogprobs | None:
    content = [
        TokenLogprob(
            _text(token.logprob), token.logprob.logprob, list(token.logprob.raw), [_top(chance) for chance in token.top]
        )
        for token in tokens
        if token.logprob is not None
    ]
    return ChatLogprobs(content) if content else None


def _completion_logprobs(tokens: Sequence[Token], offset: int) -> CompletionLogprobs | None:
    known = [(token, token.logprob) for token in tokens if token.logprob is not None]
    if not known:
        return None
    texts = [_text(chance) for _, chance in known]
    return CompletionLogprobs(
        texts,
        [chance.logprob for _, chance in known],
        [{_text(chance): chance.logprob for chance in token.top} for token, _ in known],
        [offset + sum(map(len, texts[:index])) for index in range(len(texts))],
    )


def _top(chance: Logprob) -> TopLogprob:
    return TopLogprob(_text(chance), chance.logprob, list(chance.raw))


def _text(chance: Logprob) -> str:
    return chance.raw.decode("utf-8", "replace")
