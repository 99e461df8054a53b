"""The answers of the API: types that are encoded as JSON, and that its JSON Schema is made from.

They are OpenAI's, with `notice` in each that holds the model's words, and `bimedix` for what OpenAI's do not have.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from bimedix_edge.imaging.notes import NoteReport

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatLogprobs",
    "ChatMessage",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "Delta",
    "DetokenizeAnswer",
    "ErrorAnswer",
    "Facts",
    "Health",
    "ImageSeen",
    "Model",
    "Models",
    "PreviewAnswer",
    "ProgressEvent",
    "Provenance",
    "SessionAnswer",
    "TokenLogprob",
    "TokenUsage",
    "TokenizeAnswer",
    "TopLogprob",
]

FinishReason = Literal["stop", "length"]
Count = Annotated[int, Meta(ge=0)]


class ImageSeen(Struct, frozen=True):
    """An image of the prompt; `cached` says that it was not encoded for this answer."""

    sha256: str
    width_px: Count
    height_px: Count
    cached: bool


class Provenance(Struct, frozen=True):
    """How an answer was made; the same seed and model reproduce it."""

    seed: Count
    stop_reason: Literal["end", "stop", "max_tokens", "context"]
    images: list[ImageSeen]
    timings_ms: dict[str, float]


class PromptDetails(Struct, frozen=True):
    """How many of the prompt's tokens were found in the KV cache."""

    cached_tokens: Count


class TokenUsage(Struct, frozen=True):
    """Counts of tokens; an image counts with the positions that it takes."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails


class TopLogprob(Struct, frozen=True):
    """A token and the natural logarithm of its probability, before temperature."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]]


class TokenLogprob(TopLogprob, frozen=True):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Struct, frozen=True):
    """The text of an answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """One of the `n` answers."""

    index: Count
    message: ChatMessage
    finish_reason: FinishReason
    bimedix: Provenance
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The answer to `POST /v1/chat/completions`."""

    id: str
    created: Count
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: TokenUsage
    notice: str
    object: Literal["chat.completion"] = "chat.completion"


class Delta(Struct, frozen=True):
    """The new text of a chunk."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """The new part of one of the `n` answers; `bimedix` comes with the reason why it ended."""

    index: Count
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None
    bimedix: Provenance | UnsetType = UNSET


class ProgressEvent(Struct, frozen=True):
    """What happens before the first token: a place in the queue, an image encoded, positions prefilled."""

    event: Literal["queued", "encode", "prefill"]
    choice: Count
    place: Count | UnsetType = UNSET
    image: Count | UnsetType = UNSET
    n_images: Count | UnsetType = UNSET
    done: bool | UnsetType = UNSET
    n_done: Count | UnsetType = UNSET
    n_total: Count | UnsetType = UNSET
    n_reused: Count | UnsetType = UNSET


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One event of a stream; `notice` is in the first and in those that end an answer."""

    id: str
    created: Count
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: TokenUsage | UnsetType | None = UNSET
    bimedix: ProgressEvent | UnsetType = UNSET
    notice: str | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class CompletionLogprobs(Struct, frozen=True):
    """Log-probabilities of a text; `text_offset` counts characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class CompletionChoice(Struct, frozen=True):
    """A text, or its new part in a stream."""

    index: Count
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    bimedix: Provenance | UnsetType = UNSET


class Completion(Struct, frozen=True, kw_only=True):
    """The answer to `POST /v1/completions`, and one event of its stream."""

    id: str
    created: Count
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: TokenUsage | UnsetType | None = UNSET
    bimedix: ProgressEvent | UnsetType = UNSET
    notice: str | UnsetType = UNSET
    object: Literal["text_completion"] = "text_completion"


class Model(Struct, frozen=True):
    """The model that is served."""

    id: str
    created: Count
    notice: str
    licence: str
    owned_by: str = "bimedix-edge"
    object: Literal["model"] = "model"


class Models(Struct, frozen=True):
    """The answer to `GET /v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class TokenizeAnswer(Struct, frozen=True):
    """The answer to `POST /tokenize`."""

    tokens: list[Count]


class DetokenizeAnswer(Struct, frozen=True):
    """The answer to `POST /detokenize`."""

    content: str


class Health(Struct, frozen=True):
    """The answer to `GET /health` once the model is loaded; before, the answer is an error."""

    status: Literal["ok"] = "ok"


class SessionAnswer(Struct, frozen=True):
    """The answer to `POST /api/session`."""

    key: str


class FactsLimits(Struct, frozen=True):
    """What the server allows."""

    n_ctx: Count
    n_parallel: Count
    image_tokens: Count
    max_tokens: Count
    max_images: Count
    max_body_bytes: Count


class Facts(Struct, frozen=True):
    """The answer to `GET /api/facts`: what a page must show and may offer."""

    name: str
    notice: str
    licence: str
    limits: FactsLimits
    temperature: float
    presets: list[str]


class PreviewAnswer(Struct, frozen=True):
    """The answer to `POST /api/look`; `png` is a data: URL of what the model sees."""

    png: str
    sha256: str
    width_px: Count
    height_px: Count
    n_frames: Count
    notes: list[NoteReport]
    warnings: list[NoteReport]
    tags: dict[str, str]
    presets: list[str]
    notice: str


class ErrorObject(Struct, frozen=True):
    """What went wrong: sentences for people, a code for programs, and numbers that belong to the code."""

    message: str
    type: str
    param: str | None
    code: str
    n_prompt_tokens: Count | UnsetType = UNSET
    n_ctx: Count | UnsetType = UNSET
    place: Count | UnsetType = UNSET


class ErrorAnswer(Struct, frozen=True):
    """The body of every error."""

    error: ErrorObject
