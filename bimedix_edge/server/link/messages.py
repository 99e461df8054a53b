"""The values that the server's two processes exchange; this module imports neither engine nor image decoder.

The parent speaks HTTP and holds no native code; its child owns the model. A request goes down as a `GenerateRequest`
and comes back up as `ServerEvent`s, of which the last is `Done` or `Failed`. `wire` puts them into frames.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from bimedix_edge.events import Done, Encode, Prefill, Token
from bimedix_edge.imaging.notes import NoteReport
from bimedix_edge.sampling import Sampling

__all__ = [
    "Count",
    "Failed",
    "FailureKind",
    "GenerateRequest",
    "ImagePart",
    "ImagePreview",
    "InputMessage",
    "ModelFacts",
    "Numbered",
    "Queued",
    "ServerEvent",
    "TextPart",
]

FailureKind = Literal["prompt", "image", "schema", "queue_full", "lost", "engine"]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


class _Private(Struct, frozen=True, forbid_unknown_fields=True):
    """A value that holds a user's texts or images; its `repr` shows no field."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class TextPart(_Private, frozen=True, tag="text"):
    """Text of a message."""

    text: str


class ImagePart(_Private, frozen=True, tag="image"):
    """An image of a message.

    Attributes:
        data: A whole file of any format that `imaging` reads, DICOM included.
        window: Window for a DICOM file, as CENTER/WIDTH or the name of a preset.
        frame: Which frame of a DICOM file, from 1, or `middle`; None is the middle one, too.
    """

    data: bytes
    window: str | None = None
    frame: int | str | None = None


Part = TextPart | ImagePart


class InputMessage(_Private, frozen=True):
    """One message; its images come before its text, as in the model's training, and newlines join its texts."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


class GenerateRequest(_Private, frozen=True):
    """A request for one answer, with `messages` or `prompt`, never both.

    Attributes:
        tenant: Whose key the request came with, as an opaque digest. What the model computed for one tenant, KV cache
            and image embeddings, is never reused for another.
        sampling: How tokens are chosen.
        messages: A conversation that ends with a user's message. A system message may come first; it replaces the
            model's own.
        prompt: Plain text to continue, without the model's template.
        chat: The client's name for the conversation, which chooses among the tenant's sessions; None is unnamed.
        max_tokens: Most tokens of the answer; None is the settings' value.
        stop: Texts that end the answer and are not part of it.
        top_logprobs: How many of the most likely tokens each token comes with; None is no probabilities at all.
    """

    tenant: str
    sampling: Sampling
    messages: tuple[InputMessage, ...] | None = None
    prompt: str | None = None
    chat: str | None = None
    max_tokens: Positive | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: Count | None = None


class Queued(Struct, frozen=True, forbid_unknown_fields=True):
    """The request waits; the next one to be served has place 1."""

    place: Positive


class Failed(_Private, frozen=True):
    """The request ends without an answer.

    Attributes:
        kind: Why: `prompt` (400, not valid or too long, the latter with both counts), `image` (400), `schema` (400,
            cannot be enforced), `queue_full` (429, with place and seconds to wait), `lost` (503, the model's process
            died or cannot be started), `engine` (500).
        message: Sentences for the user.
        text_so_far: What the model had written before.
        n_prompt_tokens, n_ctx: Tokens of a prompt that is too long, and of the context.
        place: How many requests wait already.
        retry_after_s: When it is worth asking again.
    """

    kind: FailureKind
    message: str
    text_so_far: str = ""
    n_prompt_tokens: Count | None = None
    n_ctx: Count | None = None
    place: Count | None = None
    retry_after_s: Annotated[float, Meta(ge=0)] | None = None

    def __repr__(self) -> str:
        return f"<Failed {self.kind}: {self.message}>"


ServerEvent = Queued | Encode | Prefill | Token | Done | Failed
# an event with the number of its answer, where a request asks for several
Numbered = tuple[int, ServerEvent]


class ModelFacts(Struct, frozen=True, forbid_unknown_fields=True):
    """What the loaded model is.

    Attributes:
        name, licence, notice: From the bundle; the notice belongs on every output.
        n_ctx: Tokens of context, which all answers share; also the most of one.
        n_parallel: Most answers that are decoded in one batch.
        n_vocab: Size of the vocabulary in tokens.
        image_tokens: Tokens that one image takes.
        max_tokens: Most tokens of an answer unless a request says otherwise.
        sampling: How tokens are chosen unless a request says otherwise; its seed is a fresh one each time.
        presets: Names of windows for CT.
        created: When the bundle's manifest was written, in seconds since 1970.
        fingerprint: Digest of weights, runtime and kernels. Equal fingerprints, seeds and requests give equal answers.
    """

    name: str
    licence: str
    notice: str
    n_ctx: Positive
    n_parallel: Positive
    n_vocab: Positive
    image_tokens: Positive
    max_tokens: Positive
    sampling: Sampling
    presets: tuple[str, ...]
    created: Count
    fingerprint: str


class ImagePreview(_Private, frozen=True):
    """What the model sees of a picture.

    Attributes:
        png: PNG file of its pixels after padding and resizing.
        sha256: Digest of the picture's file.
        width_px, height_px, n_frames: Size of the picture, and how many frames its file holds.
        notes, warnings: What was done to the picture, and what to know before believing an answer about it.
        tags: From a DICOM file: `modality`, `body_part`, `view`, `laterality` and `window`, as far as stated.
        presets: Windows that can be asked for; empty unless the picture is CT.
    """

    png: bytes
    sha256: str
    width_px: Positive
    height_px: Positive
    n_frames: Positive
    notes: tuple[NoteReport, ...] = ()
    warnings: tuple[NoteReport, ...] = ()
    tags: dict[str, str] = {}
    presets: tuple[str, ...] = ()
