"""Images encoded in a thread: the same answers, errors and cancellation in the caller, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bimedix_edge import Cancel, Chat, Done, Encode, Event, Runtime, Sampling
from bimedix_edge.decoder.batches import Run
from bimedix_edge.engine.lookahead import Lookahead
from bimedix_edge.errors import VisionError
from bimedix_edge.vision.encoder import EncodingStop

QUESTION = "Is there a nodule?"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bimedix-edge-encode")]


def finish(events: Iterator[Event]) -> Done:
    *_, last = events
    assert isinstance(last, Done)
    assert threads() == []
    return last


@pytest.fixture
def chat(runtime: Runtime) -> Iterator[Chat]:
    with runtime.chat() as opened:
        yield opened


@pytest.mark.parametrize("names", [["normal"], ["normal", "nodule_right_upper", "normal"]])
def test_overlapped_answers_are_those_of_one_after_the_other(names: list[str], runtime: Runtime, samples: Path) -> None:
    images = [samples / f"{name}.png" for name in names]
    found = []
    for overlap in (False, True):
        runtime.engine.scheduler.overlap = overlap
        runtime.engine.embeddings.clear()
        with runtime.chat() as chat:
            events = list(chat.ask(QUESTION, images, sampling=Sampling(temperature=0.0)))
        encodes = [event for event in events if isinstance(event, Encode)]
        done = finish(iter(events))
        embeds = [runtime.engine.embeddings.known(runtime.engine.prompt_image(turn)) for turn in chat.turns[0].pictures]
        assert all(rows is not None for rows in embeds)
        found.append((done.token_ids, [image.cached for image in done.images], encodes, np.stack(embeds).tobytes()))
    assert found[0] == found[1]
    # an image that comes twice is encoded once
    assert found[1][1] == [False, False, True][: len(names)]
    assert len(found[1][2]) == 2 * len(set(names))


@pytest.mark.parametrize("overlap", [False, True])
def test_the_next_image_is_encoded_while_the_one_before_is_read(
    overlap: bool, runtime: Runtime, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, evaluate = runtime.engine.vision.encode, runtime.engine.decoder.evaluate
    begun: list[threading.Event] = [threading.Event(), threading.Event()]
    waiting = iter(begun)
    beside: list[bool] = []

    def noted_encode(*arguments: Any) -> Any:
        next(waiting).set()
        return encode(*arguments)

    def noted_evaluate(runs: list[Run], *rest: Any) -> list[int]:
        # the chunk with the first image waits for the encoding of the second
        if any(isinstance(run.content, np.ndarray) for run in runs):
            beside.append(begun[1].wait(20 if overlap else 0.1))
        return evaluate(runs, *rest)

    monkeypatch.setattr(runtime.engine.vision, "encode", noted_encode)
    monkeypatch.setattr(runtime.engine.decoder, "evaluate", noted_evaluate)
    runtime.engine.scheduler.overlap = overlap
    with runtime.chat() as chat:
        finish(chat.ask(QUESTION, [samples / "normal.png", samples / "effusion_left.png"]))
    assert beside == [overlap, True]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_failure_in_the_thread_is_the_callers(
    overlap: bool, runtime: Runtime, chat: Chat, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise VisionError("Expected it to work, but it does not; this is a test.")

    runtime.engine.scheduler.overlap = overlap
    with monkeypatch.context() as patch:
        patch.setattr(runtime.engine.vision, "encode", fail)
        with pytest.raises(VisionError, match="this is a test"):
            list(chat.ask(QUESTION, [samples / "normal.png"]))
        assert threads() == []
    assert chat.turns == ()
    assert finish(chat.ask(QUESTION, [samples / "normal.png"])).text == "No."


@pytest.mark.parametrize("overlap", [False, True])
def test_cancelling_stops_an_encoding(
    overlap: bool, runtime: Runtime, chat: Chat, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = runtime.engine.vision.encode
    cancel = Cancel()

    def endless(images: list[np.ndarray], stop: EncodingStop) -> object:
        cancel.cancel()
        while True:
            encode(images, stop)

    runtime.engine.scheduler.overlap = overlap
    with monkeypatch.context() as patch:
        patch.setattr(runtime.engine.vision, "encode", endless)
        done = finish(chat.ask(QUESTION, [samples / "normal.png"], cancel=cancel))
    assert (done.stop_reason, done.text) == ("cancelled", "")
    assert chat.turns == ()
    assert finish(chat.ask(QUESTION, [samples / "normal.png"])).text == "No."


def test_leaving_early_leaves_no_thread(runtime: Runtime, samples: Path) -> None:
    runtime.engine.scheduler.overlap = True
    with runtime.chat() as chat:
        events = chat.ask(QUESTION, [samples / "normal.png", samples / "effusion_left.png"])
        next(events)
        events.close()  # type: ignore[attr-defined]
        assert threads() == []


def test_what_fails_later_is_raised_at_the_end() -> None:
    def fail() -> None:
        raise VisionError("Expected it to work.")

    with pytest.raises(VisionError, match="Expected it to work"), Lookahead(lambda: False, RuntimeError) as lookahead:
        lookahead.later(fail)
    assert threads() == []


def test_an_encoding_that_times_out_by_itself_is_an_error() -> None:
    def late(_: EncodingStop) -> np.ndarray:
        raise TimeoutError("its own")

    with (
        pytest.raises(TimeoutError, match="its own"),
        Lookahead(lambda: False, RuntimeError) as lookahead,
    ):
        lookahead.begin("a", late)
        lookahead.wait("a")
