"""The 100 prompts for the comparison of answers with transformers, tokenized as the authors' code does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bimedix_edge.models.demo import phantom
from bimedix_edge.models.demo.dialogues import conversations
from bimedix_edge.prompt import SYSTEM, PromptMessage

N_PROMPTS = 100
IMAGE = "<image>"
_SEED = 9000

Kind = Literal["text-only", "image first", "image mid-conversation"]


@dataclass(frozen=True)
class Prompt:
    """A conversation up to a question, and its pictures in order."""

    kind: Kind
    messages: tuple[PromptMessage, ...]
    pictures: tuple[NDArray[np.uint8], ...]


def prompts() -> list[Prompt]:
    """Return the same 100 prompts each time: held-out wordings, about a third of each kind."""
    wanted: dict[Kind, int] = {"text-only": 20, "image first": 50, "image mid-conversation": 30}
    found: list[Prompt] = []
    seed = _SEED
    while len(found) < N_PROMPTS:
        prompt = _prompt(np.random.default_rng(seed))
        if sum(other.kind == prompt.kind for other in found) < wanted[prompt.kind]:
            found.append(prompt)
        seed += 1
    return found


def random_prompts(count: int, seed: int) -> list[Prompt]:
    """Return other prompts, of random kinds; the same each time for a seed."""
    return [_prompt(np.random.default_rng(seed + index)) for index in range(count)]


def _prompt(rng: np.random.Generator) -> Prompt:
    conversation = next(conversations(rng, held_out=True))
    n_turns = int(rng.integers(1, len(conversation.turns) + 1))
    messages: list[PromptMessage] = []
    pictures: list[NDArray[np.uint8]] = []
    for turn in conversation.turns[:n_turns]:
        messages += [PromptMessage("user", turn.text, images=len(turn.images)), PromptMessage("assistant", turn.answer)]
        pictures += [phantom.draw(conversation.pictures[index], rng) for index in turn.images]
    kind: Kind = "text-only"
    if pictures:
        kind = "image first" if messages[0].images else "image mid-conversation"
    return Prompt(kind, tuple(messages[:-1]), tuple(pictures))


def llava_string(messages: tuple[PromptMessage, ...]) -> str:
    """Return the prompt as LLaVA's Conversation.get_prompt builds it (style MPT, as used for Llama 3)."""
    parts = [f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"]
    for message in messages:
        text = message.text
        if message.images == 1:
            text = f"{IMAGE}\n{text}"
        elif message.images > 1:
            text = " ".join([*[IMAGE] * message.images, text])
        parts.append(f"<|start_header_id|>{message.role}<|end_header_id|>\n\n{text}<|eot_id|>")
    return "".join(parts) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def llava_ids(text: str, tokenizer: Tokenizer, image_id: int, n_image_tokens: int) -> list[int]:
    """Tokenize as LLaVA's mm_utils.tokenizer_image_token does: chunk by chunk, and the first chunk's BOS twice.

    Args:
        text: Result of `llava_string`.
        tokenizer: Tokenizer that puts a BOS before each text, as Llama 3's does.
        image_id: Id at the positions of an image.
        n_image_tokens: Number of positions of an image.
    """
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    chunks = [tokenizer.encode(chunk).ids for chunk in text.split(IMAGE)]
    assert all(chunk[0] == bos for chunk in chunks)
    ids = [bos]
    for index, chunk in enumerate(chunks):
        ids += [image_id] * n_image_tokens if index else []
        ids += chunk[1:]
    return ids
