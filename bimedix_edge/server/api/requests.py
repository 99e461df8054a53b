"""The requests of the API, each a type that checks what comes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from bimedix_edge.server.api.fields import (
    MAX_CHOICES,
    Empty,
    Message,
    Metadata,
    NonEmpty,
    ResponseFormat,
    SamplingFields,
    check,
)

__all__ = ["ChatRequest", "CompletionRequest", "DetokenizeRequest", "LookRequest", "SessionRequest", "TokenizeRequest"]


class ChatRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    # which of a user's chats this is, so that what was read before is found again; an extension of ours
    bimedix_chat: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    # nothing is stored, nothing is called, everything is text
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
        """Return the most tokens of an answer, as either field says it.

        Raises:
            ApiError: 400, both say it, and not the same.
        """
        old, new = self.max_tokens, self.max_completion_tokens
        check(
            old is None or new is None or old == new,
            f"Expected one limit of tokens, but max_tokens is {old} and max_completion_tokens {new}; give one.",
            "max_completion_tokens",
        )
        return new if new is not None else old


class CompletionRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/completions`: text that the model goes on with, as it is."""

    prompt: NonEmpty | Annotated[list[NonEmpty], Meta(min_length=1, max_length=MAX_CHOICES)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /tokenize`: special tokens in the text are plain text."""

    content: str


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=1 << 20)]


class LookRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /api/look`: what would the model see of this image?"""

    image: str
    window: Annotated[str, Meta(max_length=64)] | None = None
    frame: Annotated[int, Meta(ge=1, le=1 << 20)] | Literal["middle"] | None = None


class SessionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /api/session`: the token of the page's link for the key, once."""

    token: Annotated[str, Meta(max_length=128)]
