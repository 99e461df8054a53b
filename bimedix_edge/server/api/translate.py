"""Requests of the API as requests to the model."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

from msgspec import UNSET

from bimedix_edge.errors import SchemaError
from bimedix_edge.sampling import Sampling
from bimedix_edge.schema.grammar import grammar_for
from bimedix_edge.server.api.data_urls import data_url_bytes
from bimedix_edge.server.api.errors import ApiError, invalid
from bimedix_edge.server.api.fields import (
    Assistant,
    ImageContent,
    ResponseFormat,
    SamplingFields,
    SchemaFormat,
    TextContent,
    TextFormat,
    User,
    check,
)
from bimedix_edge.server.api.fields import Message as ApiMessage
from bimedix_edge.server.api.requests import ChatRequest, CompletionRequest
from bimedix_edge.server.link.messages import GenerateRequest, ImagePart, Message, ModelFacts, Part, TextPart

__all__ = ["chat_requests", "completion_requests"]

_SEEDS = 1 << 32


async def chat_requests(
    asked: ChatRequest, holder: str, facts: ModelFacts, seed: int | None, max_images: int
) -> list[GenerateRequest]:
    """Return what the model is asked: one request for each of the `n` answers.

    Args:
        asked: what came.
        holder: whose key it came with.
        facts: of the model.
        seed: of the server's settings; None draws one where the request has none.
        max_images: of one request.

    Raises:
        ApiError: 400, fields contradict each other, or an image or a schema cannot be used; 404, another model.
    """
    _check_common(asked, facts)
    check(
        not asked.top_logprobs or bool(asked.logprobs),
        "Expected logprobs to be true where top_logprobs is given, but it is not; set it.",
        "top_logprobs",
    )
    messages = _messages(asked.messages, facts, max_images)
    sampling = await _with_format(_sampling(asked, facts, seed), asked.response_format)
    request = GenerateRequest(
        holder=holder,
        sampling=sampling,
        messages=messages,
        chat=asked.bimedix_chat,
        max_tokens=_limit(asked.limit_tokens(), facts),
        stop=_stop(asked),
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    return _choices(request, asked.n or 1)


def completion_requests(
    asked: CompletionRequest, holder: str, facts: ModelFacts, seed: int | None
) -> list[GenerateRequest]:
    """Return what the model is asked: `n` requests for each prompt.

    Args:
        asked, holder, facts, seed: as for `chat_requests`.

    Raises:
        ApiError: as for `chat_requests`.
    """
    _check_common(asked, facts)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    sampling, made = _sampling(asked, facts, seed), []
    for prompt in prompts:
        request = GenerateRequest(
            holder=holder,
            sampling=sampling,
            prompt=prompt,
            max_tokens=_limit(asked.max_tokens, facts),
            stop=_stop(asked),
            top_logprobs=asked.logprobs,
        )
        made += _choices(request, asked.n or 1)
    return made


def _check_common(asked: SamplingFields, facts: ModelFacts) -> None:
    if asked.model is not None and asked.model != facts.name:
        raise ApiError(
            404,
            "model_not_found",
            f"Expected the model {facts.name}, the one served here, but the request names another; correct it or "
            "leave it out.",
            param="model",
        )
    check(
        asked.stream_options is None or bool(asked.stream),
        "Expected stream_options only where stream is true, but it is not; leave them out.",
        "stream_options",
    )


def _limit(asked: int | None, facts: ModelFacts) -> int:
    # more than the context can hold ends at its end, with the reason `length`
    return min(asked if asked is not None else facts.max_tokens, facts.n_ctx)


def _stop(asked: SamplingFields) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def _sampling(asked: SamplingFields, facts: ModelFacts, seed: int | None) -> Sampling:
    given = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")
        if (value := getattr(asked, name)) is not None
    }
    first = asked.seed if asked.seed is not None else seed
    return replace(facts.sampling, seed=secrets.randbits(32) if first is None else first, **given)


def _choices(request: GenerateRequest, n: int) -> list[GenerateRequest]:
    """Return `n` requests that differ in their seeds."""
    sampling = request.sampling
    return [replace(request, sampling=replace(sampling, seed=(sampling.seed + index) % _SEEDS)) for index in range(n)]


async def _with_format(sampling: Sampling, wanted: ResponseFormat | None) -> Sampling:
    if wanted is None or isinstance(wanted, TextFormat):
        return sampling
    schema = wanted.json_schema.schema if isinstance(wanted, SchemaFormat) else None
    param = "response_format.json_schema.schema"
    check(schema is not UNSET, "Expected a schema in response_format, but there is none; give one.", param)
    try:
        # a large schema takes a while, which the others' answers should not
        grammar = await asyncio.to_thread(grammar_for, None if schema is UNSET else schema)
    except SchemaError as error:
        raise invalid(str(error), param, code="unsupported_schema") from None
    return replace(sampling, grammar=grammar)


def _messages(asked: list[ApiMessage], facts: ModelFacts, max_images: int) -> tuple[Message, ...]:
    """Return the conversation: a system message or none, then questions and answers in turn, at last a question."""
    _check_order(asked)
    n_images = sum(
        isinstance(part, ImageContent)
        for message in asked
        if not isinstance(message.content, str)
        for part in message.content
    )
    most = min(max_images, (facts.n_ctx - 1) // facts.image_tokens)
    check(
        n_images <= most,
        f"Expected at most {most} images, each of {facts.image_tokens} tokens of a context of {facts.n_ctx}, but there "
        f"are {n_images}; send fewer.",
        "messages",
    )
    return tuple(_message(message, index) for index, message in enumerate(asked))


def _check_order(asked: list[ApiMessage]) -> None:
    for index, message in enumerate(asked):
        is_system = not isinstance(message, (User, Assistant))
        check(
            not is_system or index == 0,
            "Expected a system message only as the first, but there is one later; move or merge it.",
            f"messages[{index}].role",
        )
    turns = [message for message in asked if isinstance(message, (User, Assistant))]
    in_turn = all(isinstance(turn, (User, Assistant)[index % 2]) for index, turn in enumerate(turns))
    check(
        in_turn and len(turns) % 2 == 1,
        "Expected messages of user and assistant in turn, the first and the last by the user, but they are not; "
        "reorder them.",
        "messages",
    )


def _message(message: ApiMessage, index: int) -> Message:
    content: list[TextContent] | list[TextContent | ImageContent] | str = message.content
    given = [TextContent(content)] if isinstance(content, str) else content
    parts: list[Part] = []
    for number, part in enumerate(given):
        if isinstance(part, TextContent):
            parts.append(TextPart(part.text))
        else:
            data = data_url_bytes(part.image_url.url, f"messages[{index}].content[{number}].image_url.url")
            hint = part.bimedix
            parts.append(ImagePart(data, hint.window if hint else None, hint.frame if hint else None))
    if isinstance(message, User):
        return Message("user", tuple(parts))
    return Message("assistant" if isinstance(message, Assistant) else "system", tuple(parts))
