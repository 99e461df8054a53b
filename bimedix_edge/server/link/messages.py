"""What the server's two processes say to each other, as values; neither engine nor decoder of images is imported here.

The parent speaks HTTP and holds no native code; its child owns the model. A request goes down as a `GenerateRequest`,
and comes back up as `ServerEvent`s, of which the last is `Done` or `Failed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bimedix_edge.events import Done, Encode, Prefill, Token
from bimedix_edge.imaging.notes import NoteReport
from bimedix_edge.sampling import Sampling

__all__ = [
    "Failed",
    "FailureKind",
    "GenerateRequest",
    "ImagePart",
    "Look",
    "Message",
    "ModelFacts",
    "Numbered",
    "Queued",
    "ServerEvent",
    "State",
    "Stats",
    "TextPart",
]

State = Literal["loading", "ready", "restarting", "failed"]
FailureKind = Literal["prompt", "image", "schema", "queue_full", "lost", "engine"]


@dataclass(frozen=True)
class TextPart:
    """Text of a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image of a message.

    Attributes:
        data: a whole file of any format that `imaging` reads, DICOM included.
        window: of a DICOM file, as CENTER/WIDTH or the name of a preset.
        frame: which of a DICOM file with several, from 1; None is the middle one.
    """

    data: bytes = field(repr=False)
    window: str | None = None
    frame: int | str | None = None


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One message; its images stand before its text, as the model was trained, and its texts are joined by newlines."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class GenerateRequest:
    """One answer that is asked for: `messages` or `prompt`, never both.

    Attributes:
        holder: whose key it came with, as an opaque digest. What was computed for one holder, KV cache and image
            embeddings, is never reused for another.
        chat: a client's name for the conversation, which chooses among the holder's sessions; None is unnamed.
        messages: a conversation that ends with a user's message; one system message may come first and replaces the
            model's own.
        prompt: plain text to go on with, without the model's template.
        sampling: how tokens are chosen.
        max_tokens: most tokens of the answer; None is the settings' value.
        stop: texts that end the answer and are not part of it.
        top_logprobs: how many of the most likely tokens are told with each; None is no probabilities at all.
    """

    holder: str
    sampling: Sampling
    messages: tuple[Message, ...] | None = None
    prompt: str | None = field(default=None, repr=False)
    chat: str | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Queued:
    """The request waits; the next one to be served has place 1."""

    place: int


@dataclass(frozen=True)
class Failed:
    """The request ends without an answer.

    Attributes:
        kind: `prompt` (400: not valid, or too long, with the two counts), `image` (400), `schema` (400:
            cannot be enforced), `queue_full` (429, with place
            and seconds to wait), `lost` (503: the model's process died, or cannot be started), `engine` (500: it
            failed).
        message: one sentence.
        text_so_far: what was written before.
        n_prompt_tokens, n_ctx: of a prompt that is too long.
        place: how many wait already.
        retry_after_s: when it is worth asking again.
    """

    kind: FailureKind
    message: str
    text_so_far: str = field(default="", repr=False)
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None
    place: int | None = None
    retry_after_s: float | None = None


ServerEvent = Queued | Encode | Prefill | Token | Done | Failed
# an event with the number of its answer, where a request asks for several
Numbered = tuple[int, ServerEvent]


@dataclass(frozen=True)
class ModelFacts:
    """What the loaded model is.

    Attributes:
        name, licence, notice: of the bundle; the notice belongs on every output.
        n_ctx: tokens of context, which all answers share; also the most of one.
        n_parallel: answers that are written together.
        n_vocab: tokens of the vocabulary.
        image_tokens: that one image takes.
        max_tokens: most tokens of an answer unless a request says otherwise.
        sampling: how tokens are chosen unless a request says otherwise; its seed is a fresh one each time.
        presets: names of windows for CT.
        created: seconds since 1970, of the bundle's manifest.
        fingerprint: of weights, runtime and kernels: equal fingerprints, seeds and requests give equal answers.
    """

    name: str
    licence: str
    notice: str
    n_ctx: int
    n_parallel: int
    n_vocab: int
    image_tokens: int
    max_tokens: int
    sampling: Sampling
    presets: tuple[str, ...]
    created: int
    fingerprint: str


@dataclass(frozen=True)
class Look:
    """What the model sees of a picture.

    Attributes:
        png: a PNG file of its pixels after padding and resizing.
        sha256: of the picture's file.
        width_px, height_px, n_frames: of the picture.
        notes, warnings: See `NoteReport`.
        tags: of a DICOM file: `modality`, `body_part`, `view`, `laterality` and `window`, as far as stated.
        presets: windows that can be asked for; empty unless the picture is CT.
    """

    png: bytes = field(repr=False)
    sha256: str
    width_px: int
    height_px: int
    n_frames: int
    notes: tuple[NoteReport, ...] = ()
    warnings: tuple[NoteReport, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    presets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stats:
    """Counters since the server started, and gauges.

    Attributes:
        n_queued: requests that wait.
        n_active: requests that are being worked on.
        n_slots: most of these at once.
        n_prompt_tokens, n_reused_tokens, n_generated_tokens: positions evaluated, found in the cache, written.
        n_encodes: images encoded.
        n_restarts: times the model's process was started anew.
        kv_used, kv_cells: positions of the KV cache.
        encode_s, prefill_s, decode_s: spent in these.
    """

    n_queued: int = 0
    n_active: int = 0
    n_slots: int = 0
    n_prompt_tokens: int = 0
    n_reused_tokens: int = 0
    n_generated_tokens: int = 0
    n_encodes: int = 0
    n_restarts: int = 0
    kv_used: int = 0
    kv_cells: int = 0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
