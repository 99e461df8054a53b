"""Scores a converted demo model through the runtime: `python -m bimedix_edge.models.demo.evaluate BUNDLE …`.

Held-out pictures, held-out wordings, greedy decoding, answers compared character for character.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.events import Done
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.models.demo import phantom
from bimedix_edge.models.demo.dialogues import CHANCE, Question, closed_questions
from bimedix_edge.models.demo.phrases import LANGUAGES
from bimedix_edge.prompt import PromptMessage, render
from bimedix_edge.runtime import Runtime
from bimedix_edge.sampling import Sampling
from bimedix_edge.settings import Settings

__all__ = ["Score", "evaluate"]

# training draws no picture from this stream
HELD_OUT_SEED = 770_077
_MAX_ANSWER_TOKENS = 48
Shown = Literal["picture", "grey", "noise"]


@dataclass(frozen=True)
class Score:
    """The score of a model in one language.

    Attributes:
        n_questions: Closed questions asked.
        n_right: Answers equal to the right one.
        n_in_language: Answers written in the question's script.
        chance: Expected share of right answers without the picture.
    """

    n_questions: int
    n_right: int
    n_in_language: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Return the share of right answers."""
        return self.n_right / self.n_questions

    @property
    def in_language(self) -> float:
        """Return the share of answers in the question's language."""
        return self.n_in_language / self.n_questions


def evaluate(bundle: Path, *, n_images: int = 500, shown: Shown = "picture") -> dict[str, Score]:
    """Ask one held-out wording of every closed question about `n_images` held-out pictures.

    Args:
        bundle: A converted demo model.
        n_images: Number of pictures.
        shown: The picture, or in its place a flat grey image or noise.

    Returns:
        A score for each language, `en` and `ar`.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    outcomes: dict[str, list[tuple[bool, bool, float]]] = {language: [] for language in LANGUAGES}
    with Runtime.open(bundle, settings=Settings(ctx_size=1024)) as runtime:
        session = runtime.engine.session()
        for _ in range(n_images):
            findings = phantom.sample(rng)
            pixels = _shown(phantom.draw(findings, rng), shown, rng)
            image = runtime.engine.prompt_image(load_picture(pixels))
            for language in LANGUAGES:
                for question in _one_wording_each(closed_questions(findings, language, held_out=True), rng):
                    segments = render([PromptMessage("user", question.text, images=1)], runtime.manifest.prompt)
                    prompt = runtime.engine.items(segments, [image])
                    events = runtime.engine.generate(
                        session, prompt, GenerationOptions(Sampling(temperature=0.0), _MAX_ANSWER_TOKENS)
                    )
                    done = next(event for event in events if isinstance(event, Done))
                    right = done.text == question.answer
                    outcomes[language].append((right, _in(language, done.text), CHANCE[question.kind]))
    return {language: _score(rows) for language, rows in outcomes.items()}


def _shown(pixels: NDArray[np.uint8], shown: Shown, rng: np.random.Generator) -> NDArray[np.uint8]:
    if shown == "grey":
        return np.full_like(pixels, 128)
    if shown == "noise":
        return rng.integers(0, 256, pixels.shape, dtype=np.uint8)
    return pixels


def _one_wording_each(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    kinds = dict.fromkeys(question.kind for question in questions)
    chosen = []
    for kind in kinds:
        wordings = [question for question in questions if question.kind == kind]
        chosen.append(wordings[int(rng.integers(len(wordings)))])
    return chosen


def _in(language: str, answer: str) -> bool:
    arabic = sum("\u0600" <= character <= "\u06ff" for character in answer)
    latin = sum(character.isascii() and character.isalpha() for character in answer)
    return arabic > latin if language == "ar" else latin > arabic


def _score(rows: Sequence[tuple[bool, bool, float]]) -> Score:
    right, in_language, chance = (sum(column) for column in zip(*rows, strict=True))
    return Score(len(rows), right, in_language, chance / len(rows))


def main() -> None:
    """Print one line for each bundle, language and kind of image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--shown", nargs="+", choices=["picture", "grey", "noise"], default=["picture"])
    arguments = parser.parse_args()
    print("bundle      shown    language  questions  right     chance    in language")
    for bundle in arguments.bundles:
        for shown in arguments.shown:
            for language, score in evaluate(bundle, n_images=arguments.images, shown=shown).items():
                print(
                    f"{bundle.name:11} {shown:8} {language:9} {score.n_questions:9}  {score.accuracy:8.2%}  "
                    f"{score.chance:8.2%}  {score.in_language:8.2%}"
                )


if __name__ == "__main__":
    main()
