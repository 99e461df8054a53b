"""Held-out accuracy in torch, on pictures and wordings that training never uses; only exact answers count.

A greedy answer equals the reference exactly when, with the reference as input, the likeliest next token is the right
one everywhere; so one pass scores a question without generating.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import dialogues
from .model import Llava
from .pictures import Pool
from .sequences import Batch, Encoded, Encoder, collate

Features = Callable[[int], Tensor]


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is exact, and the smallest lead of a right token over the runner-up, in logits."""

    right: bool
    lead: float


def shifted(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids (n, length), the positions whose logits predict a target (bool, same shape), and the targets (1-d)."""
    ids, target = torch.from_numpy(batch.ids), torch.from_numpy(batch.is_target)
    keep = torch.zeros_like(target)
    keep[:, :-1] = target[:, 1:]
    return ids, keep, ids[target]


@torch.inference_mode()
def judge(llava: Llava, sequences: Sequence[Encoded], features: Sequence[Tensor]) -> list[Verdict]:
    """Return the verdict on each sequence of one turn; `features[i]` is (m, 64, 192), the pictures of sequence i."""
    verdicts: list[Verdict | None] = [None] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        ids, keep, targets = shifted(collate([sequences[i] for i in rows]))
        logits = llava(ids, torch.cat([features[i] for i in rows]).float(), keep)
        right = logits.gather(1, targets[:, None])[:, 0]
        lead = right - logits.scatter(1, targets[:, None], -torch.inf).amax(1)
        for row, leads in zip(rows, lead.split(keep.sum(1).tolist()), strict=True):
            verdicts[row] = Verdict(bool((leads > 0).all()), float(leads.min()))
    return [verdict for verdict in verdicts if verdict is not None]


@dataclass(frozen=True)
class Exam:
    """A model and the questions that it is asked: held-out pictures, in one language."""

    llava: Llava
    encoder: Encoder
    pool: Pool
    language: dialogues.Language


def closed_accuracy(exam: Exam, features: Features, seed: int) -> tuple[float, dict[str, float], float]:
    """Return the accuracy over all held-out closed questions, one wording for each kind and picture.

    Args:
        exam: The model and the questions.
        features: Picture index to float32 (1, 64, 192); a constant hides the pictures.
        seed: Seed for the choice of wordings.

    Returns:
        The accuracy, the accuracy by kind, and the smallest lead among right answers (logits).
    """
    rng = np.random.default_rng(seed)
    sequences: list[Encoded] = []
    kinds: list[str] = []
    pictures: list[Tensor] = []
    for index, findings in enumerate(exam.pool.findings):
        by_kind = defaultdict(list)
        for question in dialogues.closed_questions(findings, exam.language, held_out=True):
            by_kind[question.kind].append(question)
        for kind, questions in by_kind.items():
            sequences.append(exam.encoder.question(questions[int(rng.integers(len(questions)))], findings))
            kinds.append(kind)
            pictures.append(features(index))
    verdicts = judge(exam.llava, sequences, pictures)
    right = defaultdict(list)
    for kind, verdict in zip(kinds, verdicts, strict=True):
        right[kind].append(verdict.right)
    leads = [verdict.lead for verdict in verdicts if verdict.right]
    by_name = {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
    return float(np.mean([v.right for v in verdicts])), by_name, min(leads, default=0.0)


def open_accuracy(exam: Exam, features: Features) -> float:
    """Return the share of exact answers to the open questions, in the first held-out wording of each kind."""
    sequences, pictures = [], []
    for index, findings in enumerate(exam.pool.findings):
        first = {q.kind: q for q in reversed(dialogues.open_questions(findings, exam.language, held_out=True))}
        for question in first.values():
            sequences.append(exam.encoder.question(question, findings))
            pictures.append(features(index))
    return float(np.mean([verdict.right for verdict in judge(exam.llava, sequences, pictures)]))


@torch.inference_mode()
def conversation_accuracy(
    llava: Llava,
    encoder: Encoder,
    rng: np.random.Generator,
    look_up: Callable[[Batch], Tensor],
    count: int = 300,
) -> float:
    """Return the share of exact turns in held-out conversations of every form, right answers given as history."""
    stream = dialogues.conversations(rng, held_out=True)
    right: list[bool] = []
    for _ in range(count // 30):
        encoded = [encoder.conversation(next(stream)) for _ in range(30)]
        batch = collate(encoded)
        ids, keep, targets = shifted(batch)
        hit = torch.zeros(ids.shape, dtype=torch.bool)
        hit[keep] = llava(ids, look_up(batch), keep).argmax(1) == targets
        for row, sequence in enumerate(encoded):
            start = 0
            for end in sequence.turn_ends:
                right.append(bool((hit[row] | ~keep[row])[start : end - 1].all()))
                start = end - 1
    return float(np.mean(right))
