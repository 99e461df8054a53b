"""The demo model with and without our kernels: the same answers, and nearly the same distributions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from native_products import INSTRUCTION_SETS, usable
from numpy.typing import NDArray

from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.synthetic.decoder import write_random_decoder
from bimedix_edge.decoder.batches import Run
from bimedix_edge.decoder.decoder import Aborted, Decoder
from bimedix_edge.decoder.placement import DecoderOptions
from bimedix_edge.engine.embeddings import EmbeddingCache
from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.engine.sessions import Item
from bimedix_edge.events import Done
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.prompt import render
from bimedix_edge.runtime import Runtime
from bimedix_edge.sampling import Sampling
from bimedix_edge.settings import Settings
from golden.prompts import Prompt, prompts, random_prompts

N_SAMPLE, N_ALL = 10, 200
_SEED = 77_000
# in nats, the mean over the first tokens of all answers. Both sides round activations to int8 alike; sums in another
# order can push a value across a rounding boundary
KL_LIMIT = 1e-4
KINDS = ("F32", "F16", "Q8_0", "Q4_K_M")
REST = ("F32", "Q8_0")
_GREEDY = Sampling(temperature=0.0)
# all runs share the embeddings, since these tests do not judge the encoder
_EMBEDDINGS = EmbeddingCache()

Answers = list[list[int]]
Logits = list[NDArray[np.float64]]

each_kind = pytest.mark.parametrize("kind", KINDS)
each_set = pytest.mark.parametrize("name", INSTRUCTION_SETS)


def opened(bundle: Path, kernels: str) -> Runtime:
    if kernels not in ("auto", "off") and not usable(kernels):
        pytest.skip(f"this processor cannot run {kernels}")
    runtime = Runtime.open(bundle, settings=Settings(ctx_size=2048, kernels=kernels))
    runtime.engine.embeddings.memory = _EMBEDDINGS
    return runtime


def items(runtime: Runtime, prompt: Prompt) -> list[Item]:
    images = [runtime.engine.prompt_image(load_picture(picture)) for picture in prompt.pictures]
    return runtime.engine.items(render(prompt.messages, runtime.manifest.prompt), images)


def answer(runtime: Runtime, prompt: Prompt, max_tokens: int = 32) -> list[int]:
    session = runtime.engine.session()
    events = runtime.engine.generate(session, items(runtime, prompt), GenerationOptions(_GREEDY, max_tokens))
    done = next(event for event in events if isinstance(event, Done))
    runtime.engine.release(session)
    return list(done.token_ids)


def answers_and_logits(bundle: Path, kernels: str, chosen: Sequence[Prompt]) -> tuple[Answers, Logits]:
    answers, logits = [], []
    with opened(bundle, kernels) as runtime:
        assert runtime.kernels.name == (None if kernels == "off" else kernels)
        for prompt in chosen:
            answer(runtime, prompt, 1)
            logits.append(runtime.engine.decoder.logits().astype(np.float64))
            answers.append(answer(runtime, prompt))
    return answers, logits


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Return the KL divergence of two distributions given as logits, in nats."""
    log_p, log_q = (logits - logits.max() for logits in (p, q))
    log_p, log_q = (log - np.log(np.exp(log).sum()) for log in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum())


_stock: dict[tuple[str, int], tuple[Answers, Logits]] = {}


def compare(bundle: Path, kind: str, name: str, chosen: Sequence[Prompt]) -> None:
    if not usable(name):
        pytest.skip(f"this processor cannot run {name}")
    if (kind, len(chosen)) not in _stock:
        _stock[kind, len(chosen)] = answers_and_logits(bundle, "off", chosen)
    expected, expected_logits = _stock[kind, len(chosen)]
    answers, logits = answers_and_logits(bundle, name, chosen)
    assert [index for index, ours in enumerate(answers) if ours != expected[index]] == []
    mean = np.mean([divergence(p, q) for p, q in zip(expected_logits, logits, strict=True)])
    print(f"{kind} {name}: mean KL {mean:.2e} of {len(chosen)} prompts")
    assert mean <= KL_LIMIT


@each_set
@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
def test_answers_are_those_without_kernels(bundles: dict[str, Path], kind: str, name: str) -> None:
    chosen = prompts()[:N_SAMPLE]
    assert {prompt.kind for prompt in chosen} == {"text-only", "image first", "image mid-conversation"}
    compare(bundles[kind], kind, name, chosen)


@pytest.mark.slow
@each_set
@each_kind
def test_answers_to_many_prompts_are_those_without_kernels(bundles: dict[str, Path], kind: str, name: str) -> None:
    compare(bundles[kind], kind, name, random_prompts(N_ALL, _SEED))


@pytest.mark.slow
@each_set
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "Q4_0"])
def test_logits_of_the_1b_shape_are_those_without_kernels(tmp_path: Path, kind: str, name: str) -> None:
    if not usable(name):
        pytest.skip(f"this processor cannot run {name}")
    path = tmp_path / "decoder.gguf"
    spec = write_random_decoder(path, "1b", FILE_TYPES[kind], lambda done, total: None, n_rows=2048)
    rng = np.random.default_rng(_SEED)
    # below 64 positions ggml adds up attention in half precision, a thousand times less exactly than our kernels
    all_tokens = [rng.integers(0, spec.n_vocab, n).tolist() for n in rng.integers(64, 128, N_ALL)]

    def logits(kernels: str) -> Logits:
        options = DecoderOptions(512, n_seq_max=1, n_batch=128, n_threads=os.cpu_count() or 1, kernels=kernels)
        with Decoder(path, spec, options) as decoder:
            found = []
            for tokens in all_tokens:
                decoder.evaluate([Run(0, 0, tokens)])
                found.append(decoder.logits().astype(np.float64))
                decoder.truncate(0, 0)
            return found

    mean = np.mean([divergence(p, q) for p, q in zip(logits("off"), logits(name), strict=True)])
    print(f"1B {kind} {name}: mean KL {mean:.2e} of {N_ALL} prompts")
    assert mean <= KL_LIMIT


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M", *(pytest.param(kind, marks=pytest.mark.slow) for kind in REST)])
def test_models_with_and_without_kernels_in_one_process(bundles: dict[str, Path], kind: str) -> None:
    chosen = prompts()[:4]
    with opened(bundles[kind], "off") as runtime:
        expected = [answer(runtime, prompt) for prompt in chosen]
    # the choice holds for the process: each model opened later changes the kernels of the earlier ones
    with opened(bundles[kind], "auto") as first, opened(bundles[kind], "off") as second:
        for runtime in (first, second, first):
            assert [answer(runtime, prompt) for prompt in chosen] == expected
        with opened(bundles[kind], "auto") as third:
            for prompt, ids in zip(chosen, expected, strict=True):
                for runtime in (second, third, first):
                    assert answer(runtime, prompt) == ids
        for runtime in (first, second):
            assert [answer(runtime, prompt) for prompt in chosen] == expected


class _StopsAt:
    """Returns True from the n-th call on."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.n


@each_set
def test_an_evaluation_stops_between_products(bundles: dict[str, Path], name: str) -> None:
    with opened(bundles["Q8_0"], name) as runtime:
        decoder: Decoder = runtime.engine.decoder
        tokens = decoder.tokenize("Is there a nodule in the left lung, and where do you see it?")
        decoder.evaluate([Run(0, 0, tokens)])
        expected = decoder.logits()
        never = _StopsAt(1 << 30)
        decoder.truncate(0, 0)
        decoder.evaluate([Run(0, 0, tokens)], never)
        # each layer has at least four points where it can stop
        assert never.asked >= 4 * decoder.spec.n_layer
        for n in itertools.chain(range(1, 8), range(8, never.asked, 7)):
            stop = _StopsAt(n)
            decoder.truncate(0, 0)
            with pytest.raises(Aborted):
                decoder.evaluate([Run(0, 0, tokens)], stop)
            # up to four other threads may ask once more each
            assert stop.asked <= n + 4
        decoder.truncate(0, 0)
        decoder.evaluate([Run(0, 0, tokens)])
        np.testing.assert_array_equal(decoder.logits(), expected)
