"""The same image twice in one message, with or without text between: two images, one encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bimedix_edge import Done, Encode, Event, Runtime, Sampling
from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.engine.sessions import Item
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.prompt import BOS, ImageSlot, Special, Text

QUESTION = "Is there a nodule?"
GREEDY = Sampling(temperature=0.0, seed=0)


def _finished(events: Iterator[Event]) -> tuple[Done, int]:
    *others, last = list(events)
    assert isinstance(last, Done)
    return last, sum(isinstance(event, Encode) and event.done for event in others)


def test_an_image_given_twice_is_two_images_and_one_encoding(runtime: Runtime, samples: Path) -> None:
    image = samples / "nodule_right_upper.png"
    runtime.engine.embeddings.clear()
    with runtime.chat() as chat:
        once, n_encodes = _finished(chat.ask(QUESTION, [image]))
        assert n_encodes == 1
        chat.clear()
        twice, n_encodes = _finished(chat.ask(QUESTION, [image, image]))
    assert n_encodes == 0
    assert [used.sha256 for used in twice.images] == [once.images[0].sha256] * 2
    assert twice.usage.prompt >= once.usage.prompt + runtime.manifest.vision.n_tokens


def test_equal_images_side_by_side_are_read_as_unequal_ones_would_be(runtime: Runtime, samples: Path) -> None:
    engine = runtime.engine
    image = engine.prompt_image(load_picture(samples / "nodule_right_upper.png"))
    # the same to the model, but never taken for the first one
    other = replace(image, key=image.key[::-1])
    segments = [Special(BOS), ImageSlot(0), ImageSlot(1), ImageSlot(2), Text(f"\n{QUESTION}")]

    def answer(prompt: list[Item]) -> tuple[tuple[int, ...], int, int]:
        engine.embeddings.clear()
        session = engine.session()
        done, n_encodes = _finished(engine.generate(session, prompt, GenerationOptions(GREEDY, max_tokens=8)))
        n_held = len(session.items)
        engine.release(session)
        assert len(done.images) == 3
        return done.token_ids, n_held, n_encodes

    equal = answer(engine.items(segments, [image, image, image]))
    unequal = answer(engine.items(segments, [image, other, image]))
    assert equal[:2] == unequal[:2]
    assert (equal[2], unequal[2]) == (1, 2)


def test_a_prompt_may_end_with_an_image(runtime: Runtime, samples: Path) -> None:
    engine = runtime.engine
    image = engine.prompt_image(load_picture(samples / "nodule_right_upper.png"))
    prompt = engine.items([Special(BOS), Text("A picture:"), ImageSlot(0)], [image])
    session = engine.session()
    done, _ = _finished(engine.generate(session, prompt, GenerationOptions(GREEDY, max_tokens=2)))
    assert done.usage.prompt == len(prompt)
    assert done.stop_reason in ("max_tokens", "end")
