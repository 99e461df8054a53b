"""Frames between the two processes: what goes in comes out, and nothing else does."""

from __future__ import annotations

import random

import pytest

from bimedix_edge.events import Done, Encode, ImageUse, Logprob, Prefill, Timings, Token, Usage
from bimedix_edge.sampling import Sampling
from bimedix_edge.server.front.waiting import WaitingLine
from bimedix_edge.server.link import wire
from bimedix_edge.server.link.messages import Failed, GenerateRequest, ImagePart, Look, Message, Queued, Stats, TextPart
from bimedix_edge.server.link.wire import PREFIX, Frame, WireError, lengths, pack, unpack

VALUES = [
    GenerateRequest(
        "a",
        Sampling(temperature=0.5, seed=3),
        (
            Message("system", (TextPart("be brief"),)),
            Message("user", (ImagePart(bytes(range(256)) * 9, window="lung", frame=3), TextPart("قلب \ud800"))),
        ),
        stop=("a", "b"),
        top_logprobs=2,
    ),
    GenerateRequest("a", Sampling(), prompt="text", max_tokens=3),
    Token(3, "x", Logprob(3, b"\xd9", -0.5), (Logprob(3, b"\xd9", -0.5), Logprob(4, b"", -1.5))),
    Done("x", (3,), "stop", Usage(5, 2, 1), (ImageUse("ab", 3, 4, cached=True),), Timings(1.0, 2.0, 3.0, 4.0)),
    Failed("queue_full", "no", place=4, retry_after_s=1.5),
    Look(b"\x89PNG" * 40, "ab", 3, 4, 1, notes=("a",), tags={"modality": "CT"}),
    Queued(2),
    Encode(0, 1, done=True),
    Prefill(1, 2, 0),
    Stats(kv_used=3),
    None,
    {"model": None, "settings": {"ctx_size": 5, "temperature": 0.5}},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_message_arrives_as_it_was(value: object) -> None:
    prefix, header, *blobs = pack(Frame("event", 7, value))
    assert lengths(prefix) == (len(header), sum(map(len, blobs)))
    assert unpack(header, b"".join(blobs)) == Frame("event", 7, value)


def test_a_frame_that_is_too_long_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WireError, match="longer"):
        lengths(PREFIX.pack(1, 1 << 40))
    monkeypatch.setattr(wire, "MAX_BLOB_BYTES", 100)
    with pytest.raises(WireError, match="longer"):
        pack(Frame("look", 1, ImagePart(b"x" * 101)))


def test_damaged_frames_are_wire_errors_that_quote_nothing() -> None:
    chance = random.Random(1)
    _, header, *blobs = pack(Frame("generate", 1, VALUES[0]))
    n_refused = 0
    for _ in range(3000):
        damaged = bytearray(header)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            unpack(bytes(damaged), b"".join(blobs))
        except WireError as error:
            n_refused += 1
            assert "brief" not in str(error)
    assert n_refused > 500
    with pytest.raises(WireError):
        unpack(header, b"".join(blobs)[:-1])
    for nonsense in (b"[]", b"{}", b'{"kind":"a","id":1,"value":{"is":"os","of":{}},"sizes":[]}', b"[" * 100_000):
        with pytest.raises(WireError):
            unpack(nonsense, b"")


def test_holders_take_turns() -> None:
    line: WaitingLine[str] = WaitingLine()
    for holder, request in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")):
        line.put(holder, request)
    assert line.remove("a", "a2")
    assert not line.remove("a", "a2")
    assert not line.remove("d", "d1")
    expected = list(line)
    assert len(line) == 5
    assert [line.take() for _ in range(5)] == expected == ["a1", "b1", "c1", "a3", "b2"]
    with pytest.raises(IndexError):
        line.take()
