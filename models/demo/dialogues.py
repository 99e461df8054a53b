"""Questions about phantoms with their one right answer, and whole conversations, in English and Arabic.

    closed_questions(findings, language, held_out=True)   # every closed question that fits, for scoring
    open_questions(findings, language, held_out=True)     # describe, impression, where
    conversations(rng)                                    # an endless stream, for training

Closed questions are even by construction when findings come from `phantom.sample`: each yes/no kind is answered "yes"
half of the time, sides are 1 to 1 and zones 1 to 1 to 1, so `CHANCE` is what an answer without the picture scores.
"Is it normal?" is asked of pictures with no finding or exactly one, which are equally frequent; "in the right lung?"
and "in the left lung?" are both asked of every picture that has the finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from . import phantom
from .answers import answer
from .phantom import Findings
from .phrases import (
    FOLLOW_UPS,
    LANGUAGES,
    ORDER_WORDS,
    QUESTIONS,
    REPLIES,
    SIDE_WORDS,
    SMALL_TALK,
    TWO_IMAGES,
    WHICH_IMAGES,
    Language,
    Wordings,
)

CHANCE: dict[str, float] = {
    "nodule_present": 1 / 2,
    "nodule_side": 1 / 2,
    "nodule_zone": 1 / 3,
    "nodule_on_side": 1 / 2,
    "effusion_present": 1 / 2,
    "effusion_side": 1 / 2,
    "effusion_on_side": 1 / 2,
    "heart_enlarged": 1 / 2,
    "normal": 1 / 2,
}
"""Expected accuracy of the best answer that ignores the picture, by kind of closed question."""

Option = TypeVar("Option")
ON_SIDE_KINDS = ("nodule_on_side", "effusion_on_side")
"""These need a comparison of the side in the question with the side seen, which a decoder learns last."""

_SIDED_KINDS = ("nodule_side", "nodule_on_side", "effusion_side", "effusion_on_side")
"""Asked twice as often in training, since a decoder learns last to distinguish right from left."""

OPEN_KINDS = ("describe", "impression", "nodule_where", "heart_size")


@dataclass(frozen=True)
class Question:
    """One question about one picture, and its one right answer (character for character)."""

    kind: str
    language: Language
    text: str
    answer: str
    held_out: bool


@dataclass(frozen=True)
class Turn:
    """The user's message and the assistant's answer; `images` indexes the conversation's pictures."""

    text: str
    answer: str
    language: Language
    kind: str
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and the findings of each picture that they send."""

    pictures: tuple[Findings, ...]
    turns: tuple[Turn, ...]


# Questions ----------------------------------------------------------------------------------------------------------


def closed_questions(findings: Findings, language: Language, *, held_out: bool) -> list[Question]:
    """Return every closed question that fits this picture, in every wording of one set.

    Args:
        findings: Findings of the picture, from `phantom.sample` for an even distribution of kinds.
        language: "en" or "ar".
        held_out: Whether to use the wordings kept out of training, or those of training.

    Returns:
        Questions in a fixed order. To score one wording a kind, pick at random among those of equal kind.
    """
    kinds = ["nodule_present", "effusion_present", "heart_enlarged"]
    if findings.nodule is not None:
        kinds += ["nodule_side", "nodule_zone", "nodule_on_side"]
    if findings.effusion is not None:
        kinds += ["effusion_side", "effusion_on_side"]
    if findings.count <= 1:
        kinds.append("normal")
    return [question for kind in kinds for question in _questions(kind, findings, language, held_out=held_out)]


def open_questions(findings: Findings, language: Language, *, held_out: bool) -> list[Question]:
    """Return every open question (describe, impression, where, heart size) in every wording of one set."""
    return [q for kind in OPEN_KINDS for q in _questions(kind, findings, language, held_out=held_out)]


def _questions(kind: str, findings: Findings, language: Language, *, held_out: bool) -> list[Question]:
    wordings = QUESTIONS[kind][language]
    sides: tuple[str, ...] = phantom.SIDES if kind.endswith("_on_side") else ("",)
    return [
        Question(
            kind=kind,
            language=language,
            text=text.format(side=SIDE_WORDS[language][side]) if side else text,
            answer=answer(kind, findings, language, side=side),
            held_out=held_out,
        )
        for text in (wordings.held_out if held_out else wordings.train)
        for side in sides
    ]


# Conversations ------------------------------------------------------------------------------------------------------


def conversations(rng: np.random.Generator, *, held_out: bool = False) -> Iterator[Conversation]:
    """Yield an endless stream of conversations of 1 to 6 turns.

    Args:
        rng: Source of every choice; the same state gives the same stream.
        held_out: Use only the held-out wordings (for scoring) instead of only those for training.
    """
    scripts = (_one_picture, _text_only, _picture_later, _second_picture, _two_at_once)
    while True:
        script = scripts[int(rng.choice(len(scripts), p=(0.58, 0.10, 0.12, 0.10, 0.10)))]
        yield script(_Writer(rng, held_out=held_out))


def drills(rng: np.random.Generator, kinds: tuple[str, ...]) -> Iterator[Conversation]:
    """Yield an endless stream of single closed questions of these kinds, each about a picture that it fits."""
    while True:
        write = _Writer(rng, held_out=False)
        write.attach()
        findings, language = write.pictures[0], write.language
        fitting = [q for q in closed_questions(findings, language, held_out=False) if q.kind in kinds]
        if not fitting:
            continue
        kind = _pick(tuple(sorted({question.kind for question in fitting})), rng)
        question = _pick([question for question in fitting if question.kind == kind], rng)
        write.say(kind, _carelessly(question.text, rng), question.answer)
        yield write.done()


def drills_and_conversations(rng: np.random.Generator, kinds: tuple[str, ...], share: float) -> Iterator[Conversation]:
    """Yield an endless stream in which `share` of the conversations are drills of these kinds."""
    single, others = drills(rng, kinds), conversations(rng)
    while True:
        yield next(single if rng.random() < share else others)


class _Writer:
    """Collects the turns of one conversation; changes the language now and then."""

    def __init__(self, rng: np.random.Generator, *, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self.language: Language = LANGUAGES[int(rng.integers(2))]
        self.pictures: list[Findings] = []
        self.turns: list[Turn] = []
        self.waiting: tuple[int, ...] = ()  # pictures that the next turn sends

    def attach(self, count: int = 1) -> None:
        """Draw new pictures for the next turn."""
        first = len(self.pictures)
        self.pictures += [phantom.sample(self.rng) for _ in range(count)]
        self.waiting = tuple(range(first, first + count))

    def choose(self, wordings: Wordings) -> str:
        """Return one wording of the set in use; in training sometimes typed carelessly."""
        options = wordings.held_out if self.held_out else wordings.train
        text = options[int(self.rng.integers(len(options)))]
        return text if self.held_out else _carelessly(text, self.rng)

    def say(self, kind: str, text: str, reply: str) -> None:
        """Add a turn in the current language, then perhaps changes the language."""
        self.turns.append(Turn(text, reply, self.language, kind, self.waiting))
        self.waiting = ()
        if self.rng.random() < 0.3:
            self.language = LANGUAGES[1 - LANGUAGES.index(self.language)]

    def small_talk(self, *kinds: str) -> None:
        """Add a turn without relation to a picture."""
        kind = kinds[int(self.rng.integers(len(kinds)))]
        self.say(kind, self.choose(SMALL_TALK[kind][self.language]), REPLIES[kind][self.language])

    def without_picture(self) -> None:
        """Ask about a picture that was never sent."""
        kind = _pick(tuple(QUESTIONS), self.rng)
        text = self.choose(QUESTIONS[kind][self.language])
        side = SIDE_WORDS[self.language][_pick(phantom.SIDES, self.rng)]
        self.say("no_image", text.format(side=side), REPLIES["no_image"][self.language])

    def ask(self) -> None:
        """Ask about the latest picture, with follow-ups now and then."""
        findings, language = self.pictures[-1], self.language
        kind = self._kind(findings)
        side = _pick(phantom.SIDES, self.rng)
        text = self.choose(QUESTIONS[kind][language]).format(side=SIDE_WORDS[language][side])
        self.say(kind, text, answer(kind, findings, language, side=side))
        topic = kind.partition("_")[0]
        if kind.endswith("_present") and self.rng.random() < 0.35:
            follow_up = _pick(("side", "zone", "where") if topic == "nodule" else ("side",), self.rng)
            text = self.choose(FOLLOW_UPS[follow_up][self.language])
            self.say(f"{topic}_{follow_up}", text, answer(f"{topic}_{follow_up}", findings, self.language))

    def _kind(self, findings: Findings) -> str:
        """Choose a kind of question; those that presume a missing finding, and uneven ones, are asked less often."""
        kind = _pick((*QUESTIONS, *_SIDED_KINDS), self.rng)
        absent = (kind.startswith("nodule_") and findings.nodule is None) or (
            kind.startswith("effusion_") and findings.effusion is None
        )
        presumes = absent and not kind.endswith("_present")
        if (presumes or (kind == "normal" and findings.count > 1)) and self.rng.random() < 0.7:
            return self._kind(findings)
        return kind

    def ask_which(self) -> None:
        """Ask about the first or the second of two pictures, or about both."""
        kind = _pick(tuple(TWO_IMAGES), self.rng)
        text = self.choose(TWO_IMAGES[kind][self.language])
        if kind == "which_nodule":
            first, second = (picture.nodule is not None for picture in self.pictures[:2])
            self.say(kind, text, WHICH_IMAGES[self.language][first, second])
            return
        order = int(self.rng.integers(2))
        reply = answer(kind, self.pictures[order], self.language)
        self.say(f"{kind}_of_two", text.format(order=ORDER_WORDS[self.language][order]), reply)

    def done(self) -> Conversation:
        """Return the finished conversation."""
        return Conversation(tuple(self.pictures), tuple(self.turns))


def _one_picture(write: _Writer) -> Conversation:
    write.attach()
    for _ in range(int(write.rng.integers(1, 6))):
        write.ask()
        if write.rng.random() < 0.08:
            write.small_talk("thanks", "doctor", "identity", "out_of_scope")
    return write.done()


def _text_only(write: _Writer) -> Conversation:
    for _ in range(int(write.rng.integers(1, 4))):
        if write.rng.random() < 0.3:
            write.without_picture()
        else:
            write.small_talk(*SMALL_TALK, "out_of_scope")
    return write.done()


def _picture_later(write: _Writer) -> Conversation:
    for _ in range(int(write.rng.integers(1, 3))):
        if write.rng.random() < 0.5:
            write.without_picture()
        else:
            write.small_talk("greeting", "identity", "doctor", "abilities")
    write.attach()
    for _ in range(int(write.rng.integers(1, 4))):
        write.ask()
    return write.done()


def _second_picture(write: _Writer) -> Conversation:
    for _ in range(2):
        write.attach()
        for _ in range(int(write.rng.integers(1, 3))):
            write.ask()
    if write.rng.random() < 0.5:
        write.ask_which()
    return write.done()


def _two_at_once(write: _Writer) -> Conversation:
    write.attach(2)
    for _ in range(int(write.rng.integers(2, 5))):
        write.ask_which()
    return write.done()


def _carelessly(text: str, rng: np.random.Generator) -> str:
    """Leave out the final mark, lower the first letter, use a Latin question mark, or add a courtesy."""
    arabic = any("\u0600" <= letter <= "\u06ff" for letter in text)
    if rng.random() < 0.12:
        text = text.rstrip("?؟.!")
    elif arabic and rng.random() < 0.1:
        text = text.replace("؟", "?")
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.06:
        text = ("من فضلك، " if arabic else "Please, ") + text
    return text


def _pick(options: Sequence[Option], rng: np.random.Generator) -> Option:
    return options[int(rng.integers(len(options)))]
