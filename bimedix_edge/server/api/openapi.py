"""The OpenAPI document, made from the types that check requests and that answers are encoded from."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from bimedix_edge.server.api.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    PreviewRequest,
    SessionRequest,
    TokenizeRequest,
)
from bimedix_edge.server.api.responses import (
    ChatChunk,
    ChatCompletion,
    Completion,
    DetokenizeAnswer,
    ErrorAnswer,
    Facts,
    Health,
    Model,
    Models,
    PreviewAnswer,
    SessionAnswer,
    TokenizeAnswer,
)

__all__ = ["document"]

_JSON = "application/json"
_STREAM = "text/event-stream"
_REFS = "#/components/schemas/{name}"
_ERRORS = {
    400: "The request is not valid, or its prompt is too long: see `n_prompt_tokens` and `n_ctx`.",
    401: "The key is missing or wrong.",
    403: "The Host is not this server's, or a browser sent the request for another site.",
    404: "The server has no such model.",
    413: "The request is too large.",
    415: "The request is not JSON.",
    429: "Too many requests. Retry-After says when to ask again, `place` how many requests wait already.",
    500: "A defect of the server.",
    503: "The model is being loaded or restarted, or memory is short. Retry-After says when to ask again.",
}
# answered without a key
_OPEN = ("/health", "/api/session")
_ALWAYS = (403, 429, 500)
_KEYED = (401,)
_BODY = (400, 413, 415)
_MODEL = (503,)


@functools.cache
def document() -> bytes:
    """Return the document, OpenAPI 3.1 in JSON."""
    operations = _operations()
    kinds = {kind for _, _, asked, answers, _ in operations for kind in (asked, *answers.values()) if kind} | {
        ErrorAnswer
    }
    _, schemas = msgspec.json.schema_components(sorted(kinds, key=lambda kind: kind.__name__), ref_template=_REFS)
    paths: dict[str, Any] = {}
    for method, path, asked, answers, errors in operations:
        paths.setdefault(path, {})[method] = _operation(method, path, asked, answers, errors)
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "bimedix-edge",
            "version": "1",
            "description": "OpenAI's API over BiMediX2 on this machine. A research model, not for clinical use.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return msgspec.json.encode(whole)


Operation = tuple[str, str, type[Any] | None, dict[str, type[Any] | None], tuple[int, ...]]


def _operations() -> list[Operation]:
    """Return for each operation its method, path, request, answers by media type, and errors."""
    with_model = (*_ALWAYS, *_KEYED, *_MODEL)
    asking = (*with_model, *_BODY)
    plain: dict[str, type[Any] | None] = {"text/plain": None}
    return [
        ("post", "/v1/chat/completions", ChatRequest, {_JSON: ChatCompletion, _STREAM: ChatChunk}, (*asking, 404)),
        ("post", "/v1/completions", CompletionRequest, {_JSON: Completion, _STREAM: Completion}, (*asking, 404)),
        ("get", "/v1/models", None, {_JSON: Models}, with_model),
        ("get", "/v1/models/{model}", None, {_JSON: Model}, (*with_model, 404)),
        ("post", "/tokenize", TokenizeRequest, {_JSON: TokenizeAnswer}, asking),
        ("post", "/detokenize", DetokenizeRequest, {_JSON: DetokenizeAnswer}, asking),
        ("get", "/health", None, {_JSON: Health}, (*_ALWAYS, *_MODEL)),
        ("get", "/metrics", None, plain, (*_ALWAYS, *_KEYED)),
        ("get", "/api/facts", None, {_JSON: Facts}, with_model),
        ("post", "/api/look", PreviewRequest, {_JSON: PreviewAnswer}, asking),
        ("post", "/api/session", SessionRequest, {_JSON: SessionAnswer}, (*_ALWAYS, *_KEYED, *_BODY)),
    ]


def _operation(
    method: str, path: str, asked: type[Any] | None, answers: dict[str, type[Any] | None], errors: tuple[int, ...]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method} {path}",
        "summary": (asked or ErrorAnswer).__doc__ if asked else next(iter(answers.values()), None).__doc__,
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {kind: _content(kind, of) for kind, of in answers.items()},
            },
            **{
                str(status): {"description": _ERRORS[status], "content": {_JSON: _content(_JSON, ErrorAnswer)}}
                for status in sorted(errors)
            },
        },
    }
    if path in _OPEN:
        operation["security"] = []
    if asked is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: _content(_JSON, asked)}}
    if "{model}" in path:
        schema = {"type": "string", "minLength": 1}
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": schema}]
    return operation


def _content(media_type: str, kind: type[Any] | None) -> dict[str, Any]:
    if kind is None:
        return {"schema": {"type": "string"}}
    reference = {"$ref": _REFS.format(name=kind.__name__)}
    if media_type == _STREAM:
        # each event is an object, or the word that ends the stream
        error = {"$ref": _REFS.format(name=ErrorAnswer.__name__)}
        object_ = {"type": "string", "contentMediaType": _JSON, "contentSchema": {"anyOf": [reference, error]}}
        data = {"anyOf": [{"const": "[DONE]"}, object_]}
        return {"schema": {"type": "object", "required": ["data"], "properties": {"data": data}}}
    return {"schema": reference}
