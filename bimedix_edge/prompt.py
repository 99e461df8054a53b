"""Messages to segments: BiMediX2's prompt, exactly as in training and in the authors' inference.

A prompt is a list of segments. `Special` is one special token of the vocabulary, `Text` is plain text (what a user
types is always `Text`, so `<|eot_id|>` or `<image>` in a question stays text), `ImageSlot` is where the embeddings of
one image go. Neighbouring `Text` is never merged: the authors tokenize chunk by chunk, and so do we.

Templates inside model files are never rendered: a GGUF or a tokenizer_config may carry any Jinja program, and Meta's
own template (which adds dates) is not the one BiMediX2 was trained with.

Source: LLaVA `llava/conversation.py` (style MPT, as used by LLaVA-pp for Llama 3) and `tokenizer_image_token`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bimedix_edge.errors import PromptError

__all__ = [
    "BOS",
    "END_HEADER",
    "END_OF_TURN",
    "START_HEADER",
    "SYSTEM",
    "ImageSlot",
    "Message",
    "PromptSpec",
    "Segment",
    "Special",
    "Text",
    "answer_header",
    "check_text",
    "closing",
    "opening",
    "render",
    "user_turn",
]

BOS = "<|begin_of_text|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Special:
    """One special token, named by its text in the vocabulary."""

    name: str


@dataclass(frozen=True)
class Text:
    """Plain text; special tokens in it are not recognised."""

    text: str


@dataclass(frozen=True)
class ImageSlot:
    """The place of one image's embeddings; `index` counts the images of the whole prompt from 0."""

    index: int


Segment = Special | Text | ImageSlot


@dataclass(frozen=True)
class PromptSpec:
    """The prompt fields of a bundle.

    Attributes:
        system: the system sentence.
        bos: how many `<|begin_of_text|>` the prompt starts with. The authors' string starts with one and their
            tokenizer adds another, so checkpoints trained by LLaVA's code saw 2.
    """

    system: str = SYSTEM
    bos: int = 2


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who speaks.
        text: what is said, without any image marker.
        images: how many images belong to this message (users only).
    """

    role: Literal["user", "assistant"]
    text: str
    images: int = field(default=0)


def opening(spec: PromptSpec) -> list[Segment]:
    """Return what comes before the first message: the BOS tokens and the system turn."""
    return [*([Special(BOS)] * spec.bos), *_header("system"), Text(f"\n\n{spec.system}"), Special(END_OF_TURN)]


def user_turn(text: str, n_images: int = 0, *, first_image: int = 0) -> list[Segment]:
    """Return one user message, its images first.

    One image is `<image>\\n{text}`, several are `<image> <image> {text}`, none is the text alone.

    Args:
        text: the question, any valid Unicode.
        n_images: images of this message.
        first_image: how many images the prompt had before it.

    Raises:
        PromptError: the text is empty or is not valid Unicode.
    """
    check_text(text)
    segments: list[Segment] = [*_header("user")]
    if n_images == 0:
        segments.append(Text(f"\n\n{text}"))
    elif n_images == 1:
        segments += [Text("\n\n"), ImageSlot(first_image), Text(f"\n{text}")]
    else:
        segments.append(Text("\n\n"))
        for offset in range(n_images):
            segments.append(ImageSlot(first_image + offset))
            segments.append(Text(" " if offset < n_images - 1 else f" {text}"))
    return [*segments, Special(END_OF_TURN)]


def answer_header() -> list[Segment]:
    """Return the header after which the model writes its answer."""
    return [*_header("assistant"), Text("\n\n")]


def closing() -> list[Segment]:
    """Return what ends an answer."""
    return [Special(END_OF_TURN)]


def render(messages: Sequence[Message], spec: PromptSpec) -> list[Segment]:
    """Return the segments of a whole conversation, ready for the next answer.

    Args:
        messages: user and assistant messages in turn, ending with a user's.
        spec: the bundle's prompt fields.

    Raises:
        PromptError: the roles do not alternate, an assistant message has images, or a text is not valid.
    """
    segments = opening(spec)
    n_images = 0
    for index, message in enumerate(messages):
        if message.role != ("user", "assistant")[index % 2]:
            raise PromptError(
                "Expected messages of user and assistant in turn, starting with the user, "
                f"but message {index + 1} is by '{message.role}'; reorder them."
            )
        if message.role == "user":
            segments += user_turn(message.text, message.images, first_image=n_images)
            n_images += message.images
        else:
            if message.images:
                raise PromptError(
                    f"Expected images in user messages only, but message {index + 1}, an answer, has "
                    f"{message.images}; move them to a question."
                )
            segments += [*answer_header(), Text(check_text(message.text, what="answer")), *closing()]
    if len(messages) % 2 == 0:
        raise PromptError("Expected the last message to be a question, but there is none; add one.")
    return [*segments, *answer_header()]


def check_text(text: str, *, what: str = "question") -> str:
    """Return `text` if it can be encoded as UTF-8 and says something.

    Raises:
        PromptError: it is blank, or holds bytes that were not valid UTF-8 when they were read.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"Expected the {what} to be valid UTF-8 text, but character {error.start + 1} is a damaged byte; "
            "type it again or convert the file to UTF-8."
        ) from error
    if not text.strip():
        raise PromptError(f"Expected the {what} to have some text, but it is empty; write one.")
    return text


def _header(role: str) -> list[Segment]:
    return [Special(START_HEADER), Text(role), Special(END_HEADER)]
