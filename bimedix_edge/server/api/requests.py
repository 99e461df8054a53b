"""The requests of the API, each a type that checks its body."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from bimedix_edge.server.api.fields import (
    MAX_CHOICES,
    ApiMessage,
    Empty,
    Metadata,
    NonEmpty,
    ResponseFormat,
    SamplingFields,
    check,
)

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "PreviewRequest",
    "SessionRequest",
    "TokenizeRequest",
]


class ChatRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ApiMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    # which of a user's chats this is, so that its cells in the KV cache are found again; an extension of ours
    bimedix_chat: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    # this server stores nothing, calls nothing, and answers in text
    metadata: Metadata = None
    store: Literal[False] | None = None
    tools: Empty = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Empty = None
    function_call: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Annotated[str, Meta(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=512)] | None = None

    def limit_tokens(self) -> int | None:
        """Return the most tokens of an answer, which either of two fields may state.

        Raises:
            ApiError: 400, both state it and differ.
        """
        old, new = self.max_tokens, self.max_completion_tokens
        check(
            old is None or new is None or old == new,
            f"`max_tokens` is {old}, but `max_completion_tokens` is {new}. Send one of them.",
            "max_completion_tokens",
        )
        return new if new is not None else old


class CompletionRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/completions`: the model continues a text as it is."""

    prompt: NonEmpty | Annotated[list[NonEmpty], Meta(min_length=1, max_length=MAX_CHOICES)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /tokenize`: special tokens in the text count as plain text."""

    content: str


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=1 << 20)]


class PreviewRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /api/look`: ask what the model sees of an image."""

    image: str
    window: Annotated[str, Meta(max_length=64)] | None = None
    frame: Annotated[int, Meta(ge=1, le=1 << 20)] | Literal["middle"] | None = None


class SessionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /api/session`: exchange the token of the page's link for the key, once."""

    token: Annotated[str, Meta(max_length=128)]
