"""The demo model's answers are right, depend on the picture, and survive quantization: 500 held-out pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bimedix_edge.models.demo.evaluate import Score, evaluate


@pytest.fixture(scope="module")
def scores(bundles: dict[str, Path]) -> dict[str, dict[str, Score]]:
    return {kind: evaluate(bundles[kind]) for kind in ("F16", "Q8_0", "Q4_K_M")}


@pytest.mark.parametrize("language", ["en", "ar"])
def test_f16_answers_are_right_and_in_the_questions_language(
    scores: dict[str, dict[str, Score]], language: str
) -> None:
    score = scores["F16"][language]
    assert score.n_questions >= 2000
    assert score.accuracy >= 0.97
    assert score.in_language >= 0.99


@pytest.mark.parametrize("language", ["en", "ar"])
@pytest.mark.parametrize(("kind", "points"), [("Q8_0", 1.0), ("Q4_K_M", 3.0)])
def test_quantized_models_lose_little(
    scores: dict[str, dict[str, Score]], language: str, kind: str, points: float
) -> None:
    lost = 100 * (scores["F16"][language].accuracy - scores[kind][language].accuracy)
    assert lost <= points


@pytest.mark.parametrize("shown", ["grey", "noise"])
def test_without_the_picture_answers_are_chance(bundles: dict[str, Path], shown: str) -> None:
    for score in evaluate(bundles["F16"], shown=shown).values():  # type: ignore[arg-type]
        assert score.accuracy <= score.chance + 0.03
