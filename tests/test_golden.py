"""The converted model against transformers' answers and arrays, kept in tests/golden; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.engine.sessions import ImageRow, Item
from bimedix_edge.events import Done
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.imaging.preprocess import preprocess
from bimedix_edge.prompt import render
from bimedix_edge.runtime import Runtime
from bimedix_edge.sampling import Sampling
from bimedix_edge.settings import Settings
from bimedix_edge.store import demo_checkpoint
from golden.prompts import N_PROMPTS, Prompt, llava_ids, llava_string, prompts

GOLDEN = Path(__file__).resolve().parent / "golden"
IMAGE_ID = -1


def _items(runtime: Runtime, prompt: Prompt) -> list[Item]:
    images = [runtime.engine.prompt_image(load_picture(picture)) for picture in prompt.pictures]
    return runtime.engine.items(render(prompt.messages, runtime.manifest.prompt), images)


def _answer(runtime: Runtime, items: Sequence[Item]) -> list[int]:
    session = runtime.engine.session()
    events = runtime.engine.generate(session, items, GenerationOptions(Sampling(temperature=0.0), max_tokens=64))
    done = next(event for event in events if isinstance(event, Done))
    runtime.engine.release(session)
    return list(done.token_ids)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each row of `a` with that of `b`, in float64."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    result: NDArray[np.float64] = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    return result


def test_prompts_are_tokenized_as_the_authors_code_does(runtime: Runtime) -> None:
    tokenizer = Tokenizer.from_file(str(demo_checkpoint() / "tokenizer.json"))
    n_image_tokens = runtime.manifest.vision.n_tokens
    for prompt in prompts():
        ours = [IMAGE_ID if isinstance(item, ImageRow) else item for item in _items(runtime, prompt)]
        assert ours == llava_ids(llava_string(prompt.messages), tokenizer, IMAGE_ID, n_image_tokens)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_greedy_answers_are_transformers(bundles: dict[str, Path], kind: str) -> None:
    expected = json.loads((GOLDEN / "answers.json").read_text(encoding="utf-8"))
    assert len(expected) == N_PROMPTS
    with Runtime.open(bundles[kind], settings=Settings(ctx_size=2048)) as runtime:
        different = [
            (answer["text"], index)
            for index, (prompt, answer) in enumerate(zip(prompts(), expected, strict=True))
            if _answer(runtime, _items(runtime, prompt)) != answer["ids"]
        ]
    assert different == []


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_logits_are_close_to_transformers(bundles: dict[str, Path], kind: str) -> None:
    expected = np.load(GOLDEN / "logits.npz")["logits"]
    chosen = prompts()[:: N_PROMPTS // len(expected)]
    worst = 0.0
    with Runtime.open(bundles[kind], settings=Settings(ctx_size=2048)) as runtime:
        for prompt, logits in zip(chosen, expected, strict=True):
            session = runtime.engine.session()
            options = GenerationOptions(Sampling(temperature=0.0), max_tokens=1)
            events = runtime.engine.generate(session, _items(runtime, prompt), options)
            assert any(isinstance(event, Done) for event in events)
            worst = max(worst, float(np.abs(runtime.engine.decoder.logits() - logits).max()))
            runtime.engine.release(session)
    print(f"{kind}: largest logit difference {worst:.2e}")
    # llama.cpp keeps keys and values as float16, whatever the weights are
    assert worst < 1e-2


def test_pixel_values_are_transformers_bit_for_bit(runtime: Runtime) -> None:
    expected = np.load(GOLDEN / "vision.npz")["pixel_values"]
    pictures = [picture for prompt in prompts() for picture in prompt.pictures][: len(expected)]
    for picture, values in zip(pictures, expected, strict=True):
        pixels = load_picture(picture).pixels
        assert np.array_equal(preprocess(pixels, runtime.manifest.preprocessing)[0], values)


def test_every_image_token_is_transformers(runtime: Runtime) -> None:
    expected = np.load(GOLDEN / "vision.npz")["embeds"]
    pictures = [picture for prompt in prompts() for picture in prompt.pictures][: len(expected)]
    for picture, embeds in zip(pictures, expected, strict=True):
        ours = runtime.engine.vision.encode([load_picture(picture).pixels])[0]
        assert ours.shape == embeds.shape
        assert cosine(ours, embeds).min() >= 0.99999
