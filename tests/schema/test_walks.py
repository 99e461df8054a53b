"""All text that a random model can write under a grammar is valid, for keywords alone and combined."""

from __future__ import annotations

import datetime
import json
import random
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from schema.machine import is_valid, walk

from bimedix_edge.errors import SchemaError
from bimedix_edge.schema.reports import SCHEMA_NAMES, load_schema

PATTERNS = ["^[a-z]{2,4}$", "[0-9]", "^(?:yes|no)$", '^[^"x]*$', "\\d{2}-\\w", "^.{1,3}$", "^[^a-z\\\\]+$", "ب|ت"]


def _ranges(low_key: str, high_key: str, most: int) -> st.SearchStrategy[dict[str, Any]]:
    pairs = st.lists(st.integers(0, most), min_size=2, max_size=2)
    return pairs.map(lambda pair: {low_key: min(pair), high_key: max(pair)})


strings = st.one_of(
    _ranges("minLength", "maxLength", 6),
    st.fixed_dictionaries({}, optional={"pattern": st.sampled_from(PATTERNS)}),
    st.fixed_dictionaries({"format": st.sampled_from(["date", "time", "date-time", "uuid"])}),
).map(lambda rest: {"type": "string", **rest})
numbers = st.one_of(
    _ranges("minimum", "maximum", 300).map(lambda rest: {"type": "integer", **rest}),
    _ranges("exclusiveMinimum", "maximum", 300).map(lambda rest: {"type": "number", **rest}),
    st.integers(1, 40).map(lambda factor: {"type": "integer", "multipleOf": factor}),
)
CHOICES = ["left", "يمين", 1, None, True, 2.5, [1], {"k": "v"}]
leaves = st.one_of(
    strings,
    numbers,
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(CHOICES), min_size=1, max_size=4)}),
    st.sampled_from([
        {"const": 'a"b\\'}, {"$ref": "#/$defs/side"}, {"type": ["string", "null"], "maxLength": 3}, {"type": "boolean"}
    ]),
)  # fmt: skip


def _branches(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    keys = st.sampled_from(["a", "b", "مفتاح", 'q"', ""])
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(keys, inner, max_size=4)},
        optional={"required": st.lists(keys, max_size=3, unique=True), "additionalProperties": st.booleans() | inner},
    )
    lists = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        objects,
        st.tuples(inner, _ranges("minItems", "maxItems", 3)).map(lambda parts: {"items": parts[0], **parts[1]}),
        lists.map(lambda items: {"type": "array", "prefixItems": items}),
        st.tuples(st.sampled_from(["anyOf", "oneOf", "allOf"]), lists).map(lambda parts: {parts[0]: parts[1]}),
        st.tuples(objects, objects).map(lambda parts: {**parts[0], "anyOf": [parts[1], {"type": "object"}]}),
        st.tuples(objects, objects).map(lambda parts: {"allOf": [parts[0], {"$ref": "#/$defs/side"}, parts[1]]}),
    )


schemas = st.recursive(leaves, _branches, max_leaves=6)
SIDES: list[dict[str, Any]] = [{"enum": ["left", "right"], "title": "Side"}, {"properties": {"s": {"type": "integer"}}}]
outcomes: list[str] = []


class Mass(BaseModel):
    kind: Literal["mass"]
    size_mm: float = Field(ge=0, le=500)


class Fluid(BaseModel):
    kind: Literal["fluid"]
    side: Literal["left", "right"] | None = None


class Report(BaseModel):
    """A model as clients of the API send it."""

    text: str = Field(max_length=20, description="in one sentence")
    day: datetime.date | None = None
    found: list[Annotated[Mass | Fluid, Field(discriminator="kind")]] = Field(min_length=1, max_length=3)
    counts: dict[str, int] = {}
    place: tuple[int, Literal["upper", "lower"]]


@settings(max_examples=300, deadline=None)
@given(schemas, st.sampled_from(SIDES), st.integers(0, 1000))
def test_what_is_written_is_valid(schema: dict[str, Any], side: dict[str, Any], seed: int) -> None:
    schema = {**schema, "$defs": {"side": side}}
    try:
        text = walk(schema, random.Random(seed))
    except SchemaError:
        outcomes.append("refused")
        return
    outcomes.append("cut" if text is None else "ended")
    assert text is None or is_valid(schema, json.loads(text)), (schema, text)


def test_most_of_these_walks_ended() -> None:
    if not outcomes:
        pytest.skip("the test above has not run")
    assert outcomes.count("ended") > 0.6 * len(outcomes)


@pytest.mark.parametrize("seed", range(10))
def test_the_schema_of_a_pydantic_model_works_unchanged(seed: int) -> None:
    text = walk(Report.model_json_schema(), random.Random(seed), most=3000)
    assert text is not None
    assert Report.model_validate_json(text).found


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_the_shipped_schemas_always_end(name: str) -> None:
    schema = load_schema(name)
    for seed in range(5):
        text = walk(schema, random.Random(seed), most=12_000)
        assert text is not None
        assert is_valid(schema, json.loads(text))
