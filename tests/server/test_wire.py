"""Frames between the two processes: what goes in comes out, and nothing else does."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec
import pytest

from bimedix_edge import child
from bimedix_edge.child import PREFIX, FrameError, frame_length
from bimedix_edge.events import Done, Encode, ImageUse, Logprob, Prefill, Timings, Token, Usage
from bimedix_edge.imaging.notes import note
from bimedix_edge.sampling import Sampling
from bimedix_edge.server.front.waiting import WaitingLine
from bimedix_edge.server.link import wire
from bimedix_edge.server.link.messages import (
    Failed,
    GenerateRequest,
    ImagePart,
    ImagePreview,
    InputMessage,
    ModelFacts,
    TextPart,
)
from bimedix_edge.server.link.wire import Frame, event_frame, pack, unpack_reply, unpack_request
from bimedix_edge.settings import Settings

QUESTION = GenerateRequest(
    "a",
    Sampling(temperature=0.5, seed=3),
    (
        InputMessage("system", (TextPart("be brief"),)),
        InputMessage("user", (ImagePart(bytes(range(256)) * 9, window="lung", frame=3), TextPart("قلب"))),
    ),
    stop=("a", "b"),
    top_logprobs=2,
)
FACTS = ModelFacts("demo", "MIT", "no", 1024, 8, 500, 144, 64, Sampling(top_k=3), ("lung",), 5, "fp_0")
REQUESTS = [
    wire.OpenModel(0, None, Settings(store_dir=Path("/nowhere/m\udcff"), ctx_size=128, temperature=0.5)),
    wire.OpenModel(0, b"/nowhere/m\xff", Settings()),
    wire.Generate(7, QUESTION),
    wire.Generate(7, GenerateRequest("a", Sampling(grammar="start: /a/"), prompt="text", max_tokens=3)),
    wire.CancelRequest(7),
    wire.Tokenize(7, "قلب heart"),
    wire.Detokenize(7, (1, 2, 10**6)),
    wire.Preview(7, ImagePart(b"", frame="middle")),
    wire.CountCells(7),
]
REPLIES = [
    wire.ModelReady(0, FACTS),
    wire.ModelRefused(0, "BundleError", "no"),
    event_frame(7, Encode(0, 1, done=True)),
    event_frame(7, Prefill(1, 2, 0)),
    event_frame(7, Token(3, "x", Logprob(3, b"\xd9", -0.5), (Logprob(3, b"\xd9", -0.5), Logprob(4, b"", -math.inf)))),
    event_frame(
        7, Done("x", (3,), "stop", Usage(5, 2, 1), (ImageUse("ab", 3, 4, cached=True),), Timings(1.0, 2.0, 3.0, 4.0))
    ),
    event_frame(7, Failed("queue_full", "no", place=4, retry_after_s=1.5)),
    wire.TokenIds(7, (1, 2)),
    wire.DetokenizedText(7, "قلب"),
    wire.PreviewReply(
        7,
        ImagePreview(
            b"\x89PNG" * 40,
            "ab",
            3,
            4,
            1,
            notes=(note("frame", frame=2, n_frames=3).report(),),
            tags={"modality": "CT"},
        ),
    ),
    wire.Cells(7, 0),
    wire.ErrorReply(7, "ImageError", "no"),
]


def payload(frame: Frame) -> bytes:
    prefix, data = pack(frame)  # type: ignore[arg-type]
    assert frame_length(prefix) == len(data)
    return data


@pytest.mark.parametrize("frame", REQUESTS, ids=lambda frame: type(frame).__name__)
def test_every_request_arrives_as_it_was(frame: Frame) -> None:
    assert unpack_request(payload(frame)) == frame


@pytest.mark.parametrize("frame", REPLIES, ids=lambda frame: type(frame).__name__)
def test_every_reply_arrives_as_it_was(frame: Frame) -> None:
    assert unpack_reply(payload(frame)) == frame


def test_a_frame_that_is_too_long_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FrameError, match="longer"):
        frame_length(PREFIX.pack(1 << 40))
    monkeypatch.setattr(child, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="longer"):
        pack(wire.Preview(1, ImagePart(b"x" * 101)))


def test_half_of_a_surrogate_pair_is_refused_in_words() -> None:
    with pytest.raises(wire.UnsendableText, match="not valid Unicode"):
        pack(wire.Tokenize(1, "a\ud800"))


def test_a_number_of_more_than_64_bits_is_refused_in_words() -> None:
    with pytest.raises(FrameError, match="more than 64 bits"):
        pack(wire.Detokenize(1, (10**400,)))


def test_damaged_frames_are_errors_that_quote_nothing() -> None:
    chance = random.Random(1)
    # with few bytes of a picture, since any value of them is valid
    messages = (InputMessage("user", (ImagePart(b"picture"), TextPart("be brief"))),)
    data = payload(wire.Generate(1, msgspec.structs.replace(QUESTION, messages=messages)))
    n_refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            unpack_request(bytes(damaged))
        except FrameError as error:
            n_refused += 1
            assert "brief" not in str(error)
    assert n_refused > 500
    for end in range(len(data)):
        with pytest.raises(FrameError):
            unpack_request(data[:end])


# a frame is a map; each of these is one that no type of ours allows
MALFORMED = {
    "no map": [1],
    "no kind": {"id": 1},
    "a kind of the other side": {"kind": "cells", "id": 1, "n_used": 1},
    "a kind that is code": {"kind": "os.system", "id": 1},
    "a number below 0": {"kind": "cancel", "id": -1},
    "a number that is text": {"kind": "cancel", "id": "1"},
    "a number that is true": {"kind": "cancel", "id": True},
    "a field that is missing": {"kind": "tokenize", "id": 1},
    "a field too many": {"kind": "cancel", "id": 1, "more": 1},
    "text that is bytes": {"kind": "tokenize", "id": 1, "text": b"x"},
    "an unknown role": {
        "kind": "generate",
        "id": 1,
        "request": {"tenant": "a", "sampling": {}, "messages": [{"role": "root", "parts": []}]},
    },
    "no token to decode": {"kind": "generate", "id": 1, "request": {"tenant": "a", "sampling": {}, "max_tokens": 0}},
    "a path that is text": {"kind": "open", "id": 0, "model": None, "settings": {"store_dir": "/"}},
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_a_frame_of_no_type_of_ours_is_refused(value: object) -> None:
    with pytest.raises(FrameError, match="malformed"):
        unpack_request(msgspec.msgpack.encode(value))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    for unpack in (unpack_request, unpack_reply):
        with pytest.raises(FrameError, match="malformed"):
            unpack(data)


def test_what_holds_a_users_words_does_not_print_them() -> None:
    secret = "Zanzibarkrankheit"
    request = GenerateRequest("a", Sampling(), (InputMessage("user", (TextPart(secret),)),), prompt=secret)
    failed = Failed("engine", "It failed.", text_so_far=secret)
    values: list[object] = [request, TextPart(secret), ImagePart(secret.encode()), failed, wire.Generate(1, request)]
    for value in values:
        assert secret not in repr(value)
    assert "It failed." in repr(failed)


def test_tenants_take_turns() -> None:
    line: WaitingLine[str] = WaitingLine()
    for tenant, request in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")):
        line.put(tenant, request)
    assert line.remove("a", "a2")
    assert not line.remove("a", "a2")
    assert not line.remove("d", "d1")
    expected = list(line)
    assert len(line) == 5
    assert [line.take() for _ in range(5)] == expected == ["a1", "b1", "c1", "a3", "b2"]
    with pytest.raises(IndexError):
        line.take()
