"""Requests of the API as requests to the model."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

from msgspec import UNSET
from msgspec.structs import replace as replace_fields

from bimedix_edge.errors import SchemaError
from bimedix_edge.sampling import Sampling
from bimedix_edge.schema.grammar import grammar_for
from bimedix_edge.server.api.data_urls import data_url_bytes
from bimedix_edge.server.api.errors import ApiError, invalid
from bimedix_edge.server.api.fields import (
    ApiMessage,
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
from bimedix_edge.server.api.requests import ChatRequest, CompletionRequest
from bimedix_edge.server.link.messages import GenerateRequest, ImagePart, InputMessage, ModelFacts, Part, TextPart

__all__ = ["chat_requests", "completion_requests"]

_SEEDS = 1 << 32


async def chat_requests(
    asked: ChatRequest, tenant: str, facts: ModelFacts, seed: int | None, max_images: int
) -> list[GenerateRequest]:
    """Return the requests to the model, one for each of the `n` answers.

    Args:
        asked: Body of the HTTP request.
        tenant: Digest of the key that it came with.
        facts: What the model is.
        seed: Seed of the server's settings; None draws one where the request has none.
        max_images: Most images of one request.

    Raises:
        ApiError: 400, fields contradict each other, or an image or a schema cannot be used; 404, another model.
    """
    _check_common(asked, facts)
    check(
        not asked.top_logprobs or bool(asked.logprobs),
        "`top_logprobs` needs `logprobs`. Set `logprobs` to true.",
        "top_logprobs",
    )
    messages = _messages(asked.messages, facts, max_images)
    sampling = await _with_format(_sampling(asked, facts, seed), asked.response_format)
    request = GenerateRequest(
        tenant=tenant,
        sampling=sampling,
        messages=messages,
        chat=asked.bimedix_chat,
        max_tokens=_limit(asked.limit_tokens(), facts),
        stop=_stop(asked),
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    return _choices(request, asked.n or 1)


def completion_requests(
    asked: CompletionRequest, tenant: str, facts: ModelFacts, seed: int | None
) -> list[GenerateRequest]:
    """Return the requests to the model, `n` for each prompt.

    Args:
        asked, tenant, facts, seed: See `chat_requests`.

    Raises:
        ApiError: See `chat_requests`.
    """
    _check_common(asked, facts)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    sampling = _sampling(asked, facts, seed)
    requests: list[GenerateRequest] = []
    for prompt in prompts:
        request = GenerateRequest(
            tenant=tenant,
            sampling=sampling,
            prompt=prompt,
            max_tokens=_limit(asked.max_tokens, facts),
            stop=_stop(asked),
            top_logprobs=asked.logprobs,
        )
        requests += _choices(request, asked.n or 1)
    return requests


def _check_common(asked: SamplingFields, facts: ModelFacts) -> None:
    if asked.model is not None and asked.model != facts.name:
        raise ApiError(
            404,
            "model_not_found",
            f"This server has only the model {facts.name}. Name that one, or leave `model` out.",
            param="model",
        )
    check(
        asked.stream_options is None or bool(asked.stream),
        "`stream_options` needs a stream. Set `stream` to true, or leave them out.",
        "stream_options",
    )


def _limit(asked: int | None, facts: ModelFacts) -> int:
    # an answer beyond the context ends where the context does, with the reason `length`
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
    samplings = [replace(sampling, seed=(sampling.seed + index) % _SEEDS) for index in range(n)]
    return [replace_fields(request, sampling=each) for each in samplings]


async def _with_format(sampling: Sampling, wanted: ResponseFormat | None) -> Sampling:
    if wanted is None or isinstance(wanted, TextFormat):
        return sampling
    schema = wanted.json_schema.schema if isinstance(wanted, SchemaFormat) else None
    param = "response_format.json_schema.schema"
    check(schema is not UNSET, "`response_format` has no schema. Add one.", param)
    try:
        # in a thread: a large schema takes a while, and the event loop serves the other clients
        grammar = await asyncio.to_thread(grammar_for, None if schema is UNSET else schema)
    except SchemaError as error:
        raise invalid(str(error), param, code="unsupported_schema") from None
    return replace(sampling, grammar=grammar)


def _messages(asked: list[ApiMessage], facts: ModelFacts, max_images: int) -> tuple[InputMessage, ...]:
    """Return the conversation: perhaps a system message, then questions and answers in turn, and last a question."""
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
        f"The request has {n_images} images, more than {most}. Each takes {facts.image_tokens} tokens of a context of "
        f"{facts.n_ctx}. Send fewer.",
        "messages",
    )
    return tuple(_message(message, index) for index, message in enumerate(asked))


def _check_order(asked: list[ApiMessage]) -> None:
    for index, message in enumerate(asked):
        is_system = not isinstance(message, (User, Assistant))
        check(
            not is_system or index == 0,
            "A system message comes after other messages. Send only one, as the first message.",
            f"messages[{index}].role",
        )
    turns = [message for message in asked if isinstance(message, (User, Assistant))]
    in_turn = all(isinstance(turn, (User, Assistant)[index % 2]) for index, turn in enumerate(turns))
    check(
        in_turn and len(turns) % 2 == 1,
        "The messages do not alternate between user and assistant, with the first and the last by the user. Reorder "
        "them.",
        "messages",
    )


def _message(message: ApiMessage, index: int) -> InputMessage:
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
        return InputMessage("user", tuple(parts))
    return InputMessage("assistant" if isinstance(message, Assistant) else "system", tuple(parts))
