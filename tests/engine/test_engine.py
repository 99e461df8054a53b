"""One engine for many: answers that must make room for each other, stop texts, probabilities, lost readers, the end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bimedix_edge import Cancel, Done, Event, Runtime, Sampling, Settings, Token, UsageError
from bimedix_edge.decoder.batches import Run
from bimedix_edge.engine.pace import Pace
from bimedix_edge.engine.request import EngineRequest, GenerationOptions
from bimedix_edge.engine.sessions import Item
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.prompt import PromptMessage, render

GREEDY = Sampling(temperature=0.0)


def prompt(runtime: Runtime, text: str, image: Path | None = None) -> list[Item]:
    shown = [] if image is None else [runtime.engine.prompt_image(load_picture(image))]
    return runtime.engine.items(render([PromptMessage("user", text, len(shown))], runtime.manifest.prompt), shown)


def finish(events: Iterator[Event]) -> Done:
    *_, last = events
    assert isinstance(last, Done)
    return last


def ask(runtime: Runtime, items: list[Item], n: int = 24) -> Done:
    engine = runtime.engine
    session = engine.session()
    done = finish(engine.generate(session, items, GenerationOptions(GREEDY, n)))
    engine.release(session)
    return done


def at_once(work: list[object]) -> None:
    threads = [threading.Thread(target=one) for one in work]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_answers_that_do_not_fit_together_are_parked_and_still_whole(bundles: dict[str, Path], samples: Path) -> None:
    """Eight answers of up to 60 tokens in 384 cells: at most five prompts fit, and their answers do not."""
    image = samples / "normal.png"
    with Runtime.open(bundles["F16"], settings=Settings(temperature=0.0, ctx_size=384)) as runtime:
        asked = [prompt(runtime, f"Describe the image. {'a ' * n}", image if n % 2 else None) for n in range(8)]
        known = [ask(runtime, items, 60) for items in asked]
        answers: dict[int, Done] = {}
        parked = []
        park = runtime.engine.sessions.park
        runtime.engine.sessions.park = lambda session: (parked.append(session), park(session))[1]  # type: ignore[method-assign]
        for _ in range(3):
            at_once([lambda n=n: answers.__setitem__(n, ask(runtime, asked[n], 60)) for n in range(8)])
            assert [answers[n].token_ids for n in range(8)] == [done.token_ids for done in known]
            assert [answers[n].stop_reason for n in range(8)] == [done.stop_reason for done in known]
        assert parked
        assert runtime.engine.sessions.n_cells == 0


def test_a_sequence_comes_back_from_the_hosts_memory_bit_for_bit(runtime: Runtime, samples: Path) -> None:
    decoder = runtime.engine.decoder
    tokens = [item for item in prompt(runtime, "Describe the image.") if isinstance(item, int)]
    other = decoder.tokenize("something else, so that cells are not where they were before")
    decoder.evaluate([Run(0, 0, tokens)])
    kept = decoder.save(0)
    decoder.evaluate([Run(0, len(tokens), [5])])
    expected = decoder.logits()
    decoder.truncate(0, 0)
    decoder.evaluate([Run(1, 0, other)])
    decoder.restore(2, kept)
    decoder.evaluate([Run(2, len(tokens), [5])])
    # llama.cpp adds up attention in the order of cells, which is the same here
    np.testing.assert_allclose(decoder.logits(), expected, atol=2e-2)
    assert int(decoder.logits().argmax()) == int(expected.argmax())
    for seq in (1, 2):
        decoder.truncate(seq, 0)


def test_a_conversation_that_left_the_cache_is_not_computed_again(bundles: dict[str, Path], samples: Path) -> None:
    with Runtime.open(bundles["F16"], settings=Settings(temperature=0.0, ctx_size=256)) as runtime:
        chats = [runtime.chat() for _ in range(5)]
        names = ["nodule_right_upper", "normal", "effusion_left", "enlarged_heart", "normal"]
        for chat, name in zip(chats, names, strict=True):
            finish(chat.ask("Is there a nodule?", [samples / f"{name}.png"]))
        for chat in chats:
            done = finish(chat.ask("Is the heart enlarged?"))
            assert done.usage.reused > runtime.manifest.vision.n_tokens
        runtime.engine.sessions.parked_bytes = 0
        for chat in chats:
            finish(chat.ask("Describe the image."))
        assert finish(chats[0].ask("Hello")).usage.reused == 0


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(runtime: Runtime, samples: Path) -> None:
    items = prompt(runtime, "Describe the image.", samples / "normal.png")
    whole = ask(runtime, items).text
    at = whole.index(" ", 8)
    stop = whole[at : at + 4]
    engine = runtime.engine
    session = engine.session()
    events = list(engine.generate(session, items, GenerationOptions(GREEDY, 24, stop=["never", stop])))
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.text, done.stop_reason) == (whole[: whole.index(stop)], "stop")
    assert "".join(event.text for event in events if isinstance(event, Token)) == done.text
    never = finish(engine.generate(session, items, GenerationOptions(GREEDY, 24, stop=[whole[-3:] + "?"])))
    assert (never.text, never.stop_reason) == (whole, "end")


@pytest.mark.parametrize("n_top", [0, 1, 3, 20])
def test_log_probabilities_are_the_log_softmax_of_the_logits(n_top: int, runtime: Runtime, samples: Path) -> None:
    items = prompt(runtime, "Describe the image.", samples / "normal.png")
    engine = runtime.engine
    session = engine.session()
    for n in range(1, 6):
        events = list(engine.generate(session, items, GenerationOptions(GREEDY, n, top_logprobs=n_top)))
        tokens = [event for event in events if isinstance(event, Token)]
        assert len(tokens) == n
        # the last token was chosen from what was evaluated last
        logits = engine.decoder.logits().astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        best = np.argsort(-logits, kind="stable")[:n_top]
        last = tokens[-1]
        assert last.logprob is not None
        assert last.id == last.logprob.id == int(logits.argmax())
        assert [known.id for known in last.top] == best.tolist()
        for known in (last.logprob, *last.top):
            assert known.logprob == pytest.approx(expected[known.id], abs=1e-5)
            assert known.raw == engine.decoder.piece(known.id)
    assert expected.min() < -5  # not a distribution that anything would pass for


def test_one_of_several_that_is_cancelled_does_not_change_the_others(runtime: Runtime, samples: Path) -> None:
    items = prompt(runtime, "Describe the image.", samples / "effusion_left.png")
    known = ask(runtime, items)
    answers: list[Done] = []
    cancel = Cancel()

    def leave() -> None:
        session = runtime.engine.session()
        for event in runtime.engine.generate(session, items, GenerationOptions(GREEDY, 24), cancel):
            if isinstance(event, Token):
                cancel.cancel()
            if isinstance(event, Done):
                assert (event.stop_reason, event.usage.generated) == ("cancelled", 1)

    at_once([leave, *[lambda: answers.append(ask(runtime, items))] * 3])
    assert [done.token_ids for done in answers] == [known.token_ids] * 3


def test_an_iterator_that_is_lost_frees_its_place(runtime: Runtime, samples: Path) -> None:
    engine = runtime.engine
    session = engine.session()
    events = engine.generate(session, prompt(runtime, "Describe the image."), GenerationOptions(GREEDY, 900))
    next(events)
    del events
    gc.collect()
    assert not session.busy
    assert finish(engine.generate(session, prompt(runtime, "Hello"), GenerationOptions(GREEDY, 3))).usage.generated > 0


def test_closing_the_engine_ends_what_is_being_written(bundles: dict[str, Path]) -> None:
    before = set(threading.enumerate())
    runtime = Runtime.open(bundles["F16"], settings=Settings(temperature=3.0, ctx_size=1024, seed=1))
    chat = runtime.chat(max_tokens=900)
    events = chat.ask("Hello")
    next(events)
    assert "bimedix-edge-engine" in [thread.name for thread in set(threading.enumerate()) - before]
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        list(events)
    with pytest.raises(UsageError, match="closed"):
        list(chat.ask("Hello"))
    chat.close()
    left = set(threading.enumerate()) - before
    assert "bimedix-edge-engine" not in [thread.name for thread in left]


def test_a_session_that_is_released_ends_its_answer(runtime: Runtime) -> None:
    engine = runtime.engine
    session = engine.session()
    options = GenerationOptions(Sampling(temperature=3.0, seed=1), 900)
    events = engine.generate(session, prompt(runtime, "Hello"), options)
    next(event for event in events if isinstance(event, Token))
    engine.release(session)
    with pytest.raises(UsageError, match="closed meanwhile"):
        list(events)


def test_more_than_are_made_together_wait_their_turn(bundles: dict[str, Path], samples: Path) -> None:
    with Runtime.open(bundles["F16"], settings=Settings(temperature=0.0, ctx_size=1024, parallel=2)) as runtime:
        items = prompt(runtime, "Describe the image.", samples / "effusion_left.png")
        known = ask(runtime, items)
        answers: list[Done] = []
        at_once([lambda: answers.append(ask(runtime, items))] * 9)
        assert [done.token_ids for done in answers] == [known.token_ids] * 9


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 200, 511, 576, 577])
@pytest.mark.parametrize("limit", [64, 112, 192, 512])
def test_a_prompt_is_never_cut_into_small_pieces(length: int, limit: int, runtime: Runtime) -> None:
    engine = runtime.engine
    session = engine.session()
    request = EngineRequest(session, [7] * length, GenerationOptions(GREEDY, 1), Cancel())
    generation = engine.scheduler.generation(request, engine.embeddings)
    sizes = []
    while len(session.items) < length:
        chunk = generation.next_chunk(limit)
        generation.chunk_evaluated(chunk, 0.1)
        sizes.append(len(chunk))
    generation.retire(UsageError("done"))
    assert sum(sizes) == length
    assert max(sizes) <= engine.decoder.n_batch
    least = engine.decoder.least_step
    assert min(sizes) >= min(least, length)
    assert max(sizes) < limit + least


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_K_M"])
def test_a_text_is_the_same_as_tokens_and_as_their_embeddings(kind: str, bundles: dict[str, Path]) -> None:
    with Runtime.open(bundles[kind], settings=Settings(ctx_size=512, threads=2)) as runtime:
        decoder = runtime.engine.decoder
        tokens = [int(token) for token in np.random.default_rng(1).integers(0, decoder.spec.n_vocab, 150)]
        decoder.evaluate([Run(0, 0, tokens)])
        looked_up = decoder.logits()
        decoder.truncate(0, 0)
        rows = decoder.token_embeds(tokens)
        assert (rows.dtype, rows.shape) == (np.float32, (150, decoder.spec.n_embd))
        assert np.unique(rows, axis=0).shape[0] == len(set(tokens))
        decoder.evaluate([Run(0, 0, rows)])
        assert (decoder.logits() == looked_up).all()


@pytest.mark.parametrize("names", [["normal"], ["normal", "nodule_right_upper", "normal"]])
def test_text_beside_images_is_read_with_them_and_changes_nothing(
    names: list[str], runtime: Runtime, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt with images at hand is one step; in pieces of any length, tokens and images apart, it says the same."""
    engine, decoder = runtime.engine, runtime.engine.decoder
    images = [engine.prompt_image(load_picture(samples / f"{name}.png")) for name in names]
    items = engine.items(
        render([PromptMessage("user", "Is there a nodule?", len(images))], runtime.manifest.prompt), images
    )
    steps: list[int] = []
    evaluate = decoder.evaluate

    def noted(runs: list[Run], *rest: object) -> list[int]:
        if any(isinstance(run.content, np.ndarray) for run in runs):
            steps.append(sum(len(run.content) for run in runs))
        return evaluate(runs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "evaluate", noted)
    answers, n_steps = [], []
    for limit in (512, 512, 64, 100):  # the first encodes
        monkeypatch.setattr(engine.scheduler.pace, "limit", lambda limit=limit, **_: limit)
        steps.clear()
        answers.append(ask(runtime, items).token_ids)
        assert sum(steps) == len(items)
        n_steps.append(len(steps))
    n_last = decoder.least_step - 1  # a few more than the limit are one step
    assert n_steps == [len(set(names)), 1, -(-(len(items) - n_last) // 64), -(-(len(items) - n_last) // 100)]
    assert answers == [answers[0]] * 4


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
def test_what_is_computed_does_not_depend_on_what_is_computed_beside_it(kind: str, bundles: dict[str, Path]) -> None:
    """A prompt in pieces of `least_step` or more, a token beside up to three others, to the bit; beside more, nearly.

    With AVX-512 VNNI and quantized weights it is to the bit in pieces of any length, and beside any others.
    """
    with Runtime.open(bundles[kind], settings=Settings(ctx_size=2048, threads=2)) as runtime:
        decoder = runtime.engine.decoder
        tokens = [int(token) for token in np.random.default_rng(0).integers(10, 200, 150)]

        def read(seq: int, *sizes: int) -> np.ndarray:
            for at, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
                decoder.evaluate([Run(seq, int(at), tokens[at : at + size])])
            return decoder.logits()

        whole = read(0, 150)
        exact = decoder.exact_beside
        assert exact == (runtime.kernels.name == "avx512vnni" and kind != "F16")
        least = decoder.least_step
        few = [least] * (149 // least)
        for sizes in ((64, 86), (86, 64), (75, 75), (*few, 150 - sum(few)), (150 - least, least)):
            decoder.truncate(0, 0)
            assert (read(0, *sizes) == whole).all(), sizes
        for seq in range(1, 8):
            read(seq, 150)
        decoder.evaluate([Run(0, 150, [17])])
        alone = decoder.logits(0)
        for n in range(2, 9):
            decoder.truncate(0, 150)
            decoder.evaluate([Run(seq, 150, [token]) for seq, token in enumerate([17, *range(20, 19 + n)])])
            beside = decoder.logits(0)
            for seq in range(1, n):
                decoder.truncate(seq, 150)
            if exact or (n <= 4 and runtime.kernels.name is not None):
                assert (beside == alone).all(), n
            # stock ggml divides a lone token's attention in another way than that of several
            tolerance = 2e-3 if runtime.kernels.name is not None else 0.3
            assert np.abs(beside - alone).max() <= tolerance, n


@pytest.mark.parametrize("piece", ["tokens", "embeddings"])
def test_what_is_written_and_what_is_read_beside_it_are_as_they_would_be_alone(
    piece: str, bundles: dict[str, Path]
) -> None:
    with Runtime.open(bundles["Q4_K_M"], settings=Settings(ctx_size=2048, threads=2)) as runtime:
        decoder = runtime.engine.decoder
        tokens = [int(token) for token in np.random.default_rng(0).integers(10, 200, 90)]
        for seq in (0, 3):
            decoder.evaluate([Run(seq, 0, tokens[: 40 + seq])])
        written_runs = [Run(0, 40, [17]), Run(3, 43, [18])]
        assert decoder.evaluate(written_runs) == [0, 1]
        written = decoder.logits(0), decoder.logits(1)
        decoder.evaluate([Run(5, 0, tokens)])
        read = decoder.logits()
        decoder.truncate(0, 40), decoder.truncate(3, 43), decoder.truncate(5, 30)
        rest = tokens[30:] if piece == "tokens" else decoder.token_embeds(tokens[30:])
        assert decoder.evaluate([*written_runs, Run(5, 30, rest)]) == [0, 1, 61]
        found = decoder.logits(0), decoder.logits(1), decoder.logits(61)
        for logits, expected in zip(found, (*written, read), strict=True):
            if decoder.exact_beside:
                assert (logits == expected).all()
            assert np.abs(logits - expected).max() < 0.3
        # and without logits of the piece
        decoder.truncate(0, 40), decoder.truncate(3, 43), decoder.truncate(5, 30)
        assert decoder.evaluate([*reversed(written_runs), Run(5, 30, rest, wants_logits=False)]) == [0, 1]
        assert np.abs(decoder.logits(1) - written[0]).max() < 0.3
        with pytest.raises(ValueError, match="a batch holds"):
            decoder.evaluate([Run(0, 41, [17]), Run(5, 90, [1] * decoder.n_batch, wants_logits=False)])


def test_a_piece_leaves_room_in_its_step_for_those_who_write(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(temperature=0.0, ctx_size=2048, threads=2, parallel=4)
    with Runtime.open(bundles["Q4_K_M"], settings=settings) as runtime:
        decoder = runtime.engine.decoder
        n_batch = decoder.n_batch
        # as it may be where a position takes next to nothing of what a token takes
        monkeypatch.setattr(runtime.engine.scheduler.pace, "limit", lambda **_: n_batch)
        long = [7 + index % 150 for index in range(n_batch + 100)]
        alone = [ask(runtime, prompt, 200).token_ids for prompt in ([5, 6], [7, 8], long)]
        found: dict[int, tuple[int, ...]] = {}

        def one(index: int, prompt: list[int]) -> Callable[[], None]:
            return lambda: found.update({index: ask(runtime, prompt, 200).token_ids})

        at_once([one(0, [5, 6]), one(1, [7, 8]), one(2, long), one(3, long)])
        if decoder.exact_beside:
            assert [found[index] for index in range(4)] == [*alone, alone[2]]
        assert len(found) == 4


def test_pieces_are_as_long_as_the_others_can_bear() -> None:
    pace = Pace(512, 64)
    assert pace.limit(decodes=False, shared=False) == 128
    pace.decoded(0.03)
    assert pace.pause_s() == pytest.approx(0.09)
    # a pass over the weights, and a millisecond a position
    pace.prefilled(128, 0.03 + 0.128)
    assert pace.limit(decodes=True, shared=False) == 144  # six times 30 ms, less the pass: 150 ms
    assert pace.limit(decodes=False, shared=False) == 512
    assert pace.limit(decodes=False, shared=True) == 464
    for _ in range(50):
        pace.prefilled(64, 64.0)
    assert pace.limit(decodes=True, shared=True) == 64
    assert pace.limit(decodes=False, shared=True) == 128
    # where results are the same for any number, pieces may be short, but not so short that nothing is read
    pace = Pace(512, 1)
    pace.decoded(0.03)
    pace.prefilled(64, 64.0)
    assert pace.limit(decodes=True, shared=True) == 16
