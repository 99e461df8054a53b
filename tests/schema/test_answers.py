"""The demo model, which knows no JSON, under schemas: each answer is valid, and nothing else changes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from schema.machine import is_valid

from bimedix_edge.errors import SchemaError
from bimedix_edge.events import Done
from bimedix_edge.runtime import Runtime
from bimedix_edge.sampling import Sampling
from bimedix_edge.schema.grammar import grammar_for
from bimedix_edge.schema.reports import SCHEMA_NAMES, load_schema
from bimedix_edge.settings import Settings

SIDE = {"enum": ["left", "right", "both", "أيمن"]}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"present": {"type": "boolean"}, "side": SIDE}, "required": ["present", "side"]},
    {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 12}, "minItems": 1, "maxItems": 3},
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 12}}, "required": ["n"]},
    {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"]},
    {"type": "string", "pattern": "^[A-Z]{2}-\\d{4}$"},
    {"anyOf": [{"type": "null"}, {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 999}]},
    {"type": "string", "maxLength": 20},
    {
        "type": "object",
        "properties": {"النتيجة": {"type": "string", "maxLength": 16}, "more": {"$ref": "#/$defs/more"}},
        "required": ["النتيجة"],
        "$defs": {"more": {"type": "array", "items": {"type": ["boolean", "null"]}, "maxItems": 4}},
    },
    {
        "prefixItems": [{"type": "string", "maxLength": 5}, {"type": "integer", "maximum": 99, "minimum": -99}],
        "minItems": 2,
    },
    {"oneOf": [{"type": "object", "properties": {"k": {"const": kind}}, "required": ["k"]} for kind in "ab"]},
]
QUESTIONS = ["Is there a nodule?", "هل توجد عقيدة رئوية؟"]
N_REQUESTS = 200


@pytest.fixture(scope="module")
def model(bundles: dict[str, Path]) -> Iterator[Runtime]:
    with Runtime.open(bundles["F16"], settings=Settings(ctx_size=1024, threads=1)) as opened:
        yield opened


def answer(model: Runtime, schema: dict[str, Any] | None, question: str = QUESTIONS[0], **sampling: Any) -> Done:
    with model.chat(sampling=Sampling(grammar=grammar_for(schema), **sampling), max_tokens=600) as chat:
        *_, done = chat.ask(question)
    assert isinstance(done, Done)
    return done


def test_of_200_answers_200_are_valid(model: Runtime) -> None:
    """Temperatures from 0 to 1.5, in both languages; each schema is bounded, so that each answer ends."""
    valid = 0
    for seed in range(N_REQUESTS):
        schema = SCHEMAS[seed % len(SCHEMAS)]
        done = answer(model, schema, QUESTIONS[seed % 2], seed=seed, temperature=seed % 7 / 4, top_k=seed % 3 * 20)
        valid += done.stop_reason == "end" and is_valid(schema, json.loads(done.text))
    assert valid == N_REQUESTS


@pytest.mark.parametrize("name", SCHEMA_NAMES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_shipped_schemas(model: Runtime, samples: Path, name: str, question: str) -> None:
    sampling = Sampling(grammar=grammar_for(load_schema(name)), seed=3, temperature=1.0)
    with model.chat(sampling=sampling, max_tokens=900) as chat:
        *_, done = chat.ask(question, [samples / "effusion_left.png"])
    assert isinstance(done, Done)
    assert is_valid(load_schema(name), json.loads(done.text))


def test_the_model_chooses_among_what_the_schema_allows(model: Runtime, samples: Path) -> None:
    """The mask removes tokens that the schema forbids and keeps the order of the others."""
    sampling = Sampling(temperature=0.0, grammar=grammar_for({"enum": ["Yes.", "No."]}))
    for picture, expected in (("nodule_right_upper.png", "Yes."), ("effusion_left.png", "No.")):
        with model.chat(sampling=replace(sampling, grammar=None)) as chat:
            *_, free = chat.ask(QUESTIONS[0], [samples / picture])
        assert isinstance(free, Done)
        assert free.text == expected
        with model.chat(sampling=sampling) as chat:
            *_, held = chat.ask(QUESTIONS[0], [samples / picture])
        assert isinstance(held, Done)
        assert json.loads(held.text) in ("Yes.", "No.")


def test_two_answers_at_once_have_separate_states(model: Runtime) -> None:
    schemas = [SCHEMAS[3], SCHEMAS[7]]
    alone = [answer(model, schema, seed=5).text for schema in schemas]
    chats = [model.chat(sampling=Sampling(grammar=grammar_for(schema), seed=5)) for schema in schemas]
    last: list[object] = [None, None]
    # one event of each in turn
    for events in itertools.zip_longest(*(chat.ask(QUESTIONS[0]) for chat in chats)):
        last = [event or before for event, before in zip(events, last, strict=True)]
    assert [done.text for done in last if isinstance(done, Done)] == alone
    for chat in chats:
        chat.close()


def test_the_same_seed_writes_the_same_answer(model: Runtime) -> None:
    texts = {answer(model, SCHEMAS[1], seed=9, temperature=1.0).text for _ in range(3)}
    assert len(texts) == 1


def test_an_answer_that_is_cut_says_so(model: Runtime) -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 900}
    with model.chat(sampling=Sampling(grammar=grammar_for(schema)), max_tokens=20) as chat:
        *_, done = chat.ask(QUESTIONS[0])
    assert isinstance(done, Done)
    assert done.stop_reason == "max_tokens"
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.text)


def test_a_schema_that_allows_nothing_leaves_no_trace(model: Runtime) -> None:
    nothing = grammar_for({"type": "integer", "minimum": 2, "maximum": 1})
    with model.chat() as chat:
        for _ in range(2):
            with pytest.raises(SchemaError):
                list(chat.ask(QUESTIONS[0], sampling=Sampling(grammar=nothing)))
        assert chat.turns == ()
        *_, done = chat.ask(QUESTIONS[0], sampling=Sampling(temperature=0.0))
    assert isinstance(done, Done)
    assert done.stop_reason == "end"


def test_a_repeat_penalty_and_other_samplers_work_with_a_schema(model: Runtime) -> None:
    options: list[dict[str, Any]] = [
        {"repeat_penalty": 1.3},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"temperature": 0.0, "repeat_penalty": 1.1},
    ]
    for option in options:
        done = answer(model, SCHEMAS[0], **{"seed": 1, **option})
        assert is_valid(SCHEMAS[0], json.loads(done.text))
