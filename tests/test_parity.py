"""The live comparison with torch and transformers, from which the golden files come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bimedix_edge.imaging.preprocess import Preprocessing, preprocess
from bimedix_edge.runtime import Runtime
from bimedix_edge.store import demo_checkpoint
from golden.prompts import prompts

if TYPE_CHECKING:
    from golden.reference import Reference

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).resolve().parent / "golden"


@pytest.fixture(scope="module")
def reference() -> Reference:
    pytest.importorskip("torch", reason="needs torch: run `make parity`")
    pytest.importorskip("transformers", reason="needs transformers: run `make parity`")
    from golden.reference import Reference

    return Reference(demo_checkpoint())


def test_the_golden_answers_are_what_transformers_says_today(reference: Reference) -> None:
    expected = json.loads((GOLDEN / "answers.json").read_text(encoding="utf-8"))
    for prompt, answer in zip(prompts(), expected, strict=True):
        assert reference.answer(prompt)[0] == answer["ids"]


def test_image_tokens_equal_transformers_on_fresh_pictures(reference: Reference, runtime: Runtime) -> None:
    pictures = [picture for prompt in prompts() for picture in prompt.pictures][-20:]
    worst = 1.0
    for picture in pictures:
        ours = runtime.engine.vision.encode([np.repeat(picture[..., None], 3, axis=2)])[0].astype(np.float64)
        theirs = reference.embeds(reference.pixel_values(picture)).astype(np.float64)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        worst = min(worst, float(((ours * theirs).sum(axis=1) / norms).min()))
    print(f"lowest cosine of an image token: {worst:.9f}")
    assert worst >= 0.99999


@pytest.mark.parametrize("size", [112, 336])
def test_pixel_values_equal_clipimageprocessor_on_odd_sizes(reference: Reference, size: int) -> None:
    from golden.reference import clip_pixel_values

    rng = np.random.default_rng(11)
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(1, 700, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert np.array_equal(preprocess(pixels, Preprocessing(image_size_px=size)), clip_pixel_values(pixels, size)), (
            height,
            width,
        )


def test_cropped_pixel_values_equal_clipimageprocessors_default_on_odd_sizes(reference: Reference) -> None:
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    rng = np.random.default_rng(12)
    worst = 0.0
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(20, 700, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = np.asarray(processor(pixels, return_tensors="np")["pixel_values"])
        worst = max(worst, float(np.abs(preprocess(pixels, Preprocessing(aspect="crop")) - theirs).max()))
    assert worst <= 1e-6
