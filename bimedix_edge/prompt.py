"""Turns messages into segments: BiMediX2's prompt, exactly as in training and in the authors' inference.

A prompt is a list of segments. `Special` is one special token of the vocabulary. `Text` is plain text; the user's words
are always `Text`, so `<|eot_id|>` or `<image>` in a question stays text. `ImageSlot` is the place of one image's
embeddings. Adjacent `Text` segments are never merged: the authors tokenize each of them alone, and so do we.

We never render templates from model files: a GGUF or a tokenizer_config may carry any Jinja program, and Meta's own
template, which adds dates, is not the one BiMediX2 was trained with.

Source: LLaVA `llava/conversation.py` (style MPT, as used by LLaVA-pp for Llama 3) and `tokenizer_image_token`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from bimedix_edge.errors import PromptError

__all__ = [
    "BOS",
    "END_HEADER",
    "END_OF_TURN",
    "START_HEADER",
    "SYSTEM",
    "ImageSlot",
    "PromptMessage",
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
    """Plain text; special tokens in it are tokenized as text."""

    text: str


@dataclass(frozen=True)
class ImageSlot:
    """The place of one image's embeddings; `index` is the image's number in the whole prompt, from 0."""

    index: int


Segment = Special | Text | ImageSlot


@dataclass(frozen=True)
class PromptSpec:
    """The prompt fields of a bundle.

    Attributes:
        system: System prompt.
        bos: Number of `<|begin_of_text|>` tokens at the start of a prompt. The authors' string starts with one and
            their tokenizer adds another, so checkpoints trained by LLaVA's code saw 2.
    """

    system: Annotated[str, Meta(max_length=1 << 16)] = SYSTEM
    bos: Annotated[int, Meta(ge=1, le=2)] = 2


@dataclass(frozen=True)
class PromptMessage:
    """One message of a conversation.

    Attributes:
        role: Author of the message.
        text: Text of the message, without image markers.
        images: Number of images of this message; only a user's message has any.
    """

    role: Literal["user", "assistant"]
    text: str
    images: int = field(default=0)


def opening(spec: PromptSpec) -> list[Segment]:
    """Return the segments before the first message: the BOS tokens and the system turn."""
    return [*([Special(BOS)] * spec.bos), *_header("system"), Text(f"\n\n{spec.system}"), Special(END_OF_TURN)]


def user_turn(text: str, n_images: int = 0, *, first_image: int = 0) -> list[Segment]:
    """Return one user message, its images first.

    The layout is `<image>\\n{text}` with one image, `<image> <image> {text}` with several, and `{text}` without.

    Args:
        text: Question, any valid Unicode.
        n_images: Number of images of this message.
        first_image: Number of images in the messages before it.

    Raises:
        PromptError: The text is empty or is not valid Unicode.
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
    """Return the segments after which the model writes its answer."""
    return [*_header("assistant"), Text("\n\n")]


def closing() -> list[Segment]:
    """Return the segments that end an answer."""
    return [Special(END_OF_TURN)]


def render(messages: Sequence[PromptMessage], spec: PromptSpec) -> list[Segment]:
    """Return the segments of a whole conversation, ready for the next answer.

    Args:
        messages: User and assistant messages in turn, starting and ending with a user's.
        spec: Prompt fields of the bundle.

    Raises:
        PromptError: The roles do not alternate, an assistant message has images, or a text is not valid.
    """
    segments = opening(spec)
    n_images = 0
    for index, message in enumerate(messages):
        if message.role != ("user", "assistant")[index % 2]:
            raise PromptError(
                f"Message {index + 1} is by '{message.role}', but user and assistant must take turns, and the user "
                "starts. Reorder the messages."
            )
        if message.role == "user":
            segments += user_turn(message.text, message.images, first_image=n_images)
            n_images += message.images
        else:
            if message.images:
                raise PromptError(
                    f"Message {index + 1} is an answer and has images, which only questions may have. "
                    "Move them to a question."
                )
            segments += [*answer_header(), Text(check_text(message.text, what="answer")), *closing()]
    if len(messages) % 2 == 0:
        raise PromptError("The last message is not a question. Add one.")
    return [*segments, *answer_header()]


def check_text(text: str, *, what: str = "question") -> str:
    """Return `text` if it is valid Unicode and not blank.

    Args:
        text: Text of a message.
        what: Name of the text in the error's message.

    Raises:
        PromptError: It is blank, or holds bytes that were not valid UTF-8 when they were read.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The {what} is not valid UTF-8: character {error.start + 1} is damaged. "
            "Type it again, or convert the file to UTF-8."
        ) from error
    if not text.strip():
        raise PromptError(f"The {what} is empty. Write one.")
    return text


def _header(role: str) -> list[Segment]:
    return [Special(START_HEADER), Text(role), Special(END_HEADER)]
