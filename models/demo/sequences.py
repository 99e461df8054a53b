"""Conversations to token ids, in BiMediX2's prompt: tokenized piece by piece around special tokens and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .dialogues import Conversation, Question, Turn
from .phantom import Findings
from .vocabulary import SYSTEM

IMAGE = -1  # the id at the place of an image embedding


@dataclass
class Encoded:
    """One conversation as ids. `is_target[i]` says that ids[i] is a target (answers and their <|eot_id|>)."""

    ids: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)
    pictures: list[Findings] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], *, target: bool = False) -> None:
        """Append ids."""
        self.ids += ids
        self.is_target += [target] * len(ids)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences: `ids` int64 and `is_target` bool (n, length); pictures in order of appearance."""

    ids: NDArray[np.int64]
    is_target: NDArray[np.bool_]
    pictures: list[Findings]


class Encoder:
    """Turns conversations into sequences with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, n_image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.image = [IMAGE] * n_image_tokens
        self.text = lru_cache(maxsize=None)(lambda t: tuple(tokenizer.encode(t, add_special_tokens=False).ids))

    def special(self, name: str) -> list[int]:
        """Return the id of a special token."""
        return [self.tokenizer.token_to_id(f"<|{name}|>")]

    def header(self, role: str) -> list[int]:
        """Return the three tokens that start a message."""
        return [*self.special("start_header_id"), *self.text(role), *self.special("end_header_id")]

    def conversation(self, conversation: Conversation) -> Encoded:
        """Encode a whole conversation; BOS comes twice, as in the authors' training."""
        sequence = Encoded()
        sequence.add(self.special("begin_of_text") * 2 + self.header("system"))
        sequence.add([*self.text(f"\n\n{SYSTEM}"), *self.special("eot_id")])
        for turn in conversation.turns:
            sequence.add(self.user(turn))
            sequence.pictures += [conversation.pictures[i] for i in turn.images]
            sequence.add([*self.header("assistant"), *self.text("\n\n")])
            sequence.add([*self.text(turn.answer), *self.special("eot_id")], target=True)
            sequence.turn_ends.append(len(sequence.ids))
        return sequence

    def user(self, turn: Turn) -> list[int]:
        """Encode one user message with its images in front of the text."""
        ids = self.header("user")
        if not turn.images:
            ids += self.text(f"\n\n{turn.text}")
        elif len(turn.images) == 1:
            ids += [*self.text("\n\n"), *self.image, *self.text(f"\n{turn.text}")]
        else:
            ids += self.text("\n\n")
            for place in range(len(turn.images)):
                ids += [*self.image, *self.text(f" {turn.text}" if place == len(turn.images) - 1 else " ")]
        return ids + self.special("eot_id")

    def question(self, question: Question, findings: Findings) -> Encoded:
        """Encode one question about one picture as a conversation of one turn."""
        turn = Turn(question.text, question.answer, question.language, question.kind, images=(0,))
        return self.conversation(Conversation((findings,), (turn,)))


def collate(sequences: Sequence[Encoded]) -> Batch:
    """Pad on the right with id 0; no token attends to the padding and it has no targets."""
    length = max(len(s.ids) for s in sequences)
    ids = np.zeros((len(sequences), length), dtype=np.int64)
    is_target = np.zeros((len(sequences), length), dtype=bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = sequence.ids
        is_target[row, : len(sequence.ids)] = sequence.is_target
    return Batch(ids, is_target, [p for s in sequences for p in s.pictures])


def batches(
    encoder: Encoder, stream: Iterator[Conversation], size: int, rng: np.random.Generator, group: int = 8
) -> Iterator[Batch]:
    """Yield endless batches of `size` conversations of similar length: `group` batches are sorted together."""
    while True:
        sequences = [encoder.conversation(next(stream)) for _ in range(size * group)]
        sequences.sort(key=lambda s: len(s.ids))
        for start in rng.permutation(group) * size:
            yield collate(sequences[start : start + size])
