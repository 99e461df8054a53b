"""Rules that cannot be enforced are refused with their name and place, never ignored."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema.machine import constraint

from bimedix_edge.errors import SchemaError
from bimedix_edge.schema.grammar import MAX_DEPTH, MAX_SCHEMA_BYTES, MAX_SUBSCHEMAS, grammar_for
from bimedix_edge.schema.keywords import CHECKS

UNENFORCED = {
    "not": {},
    "if": {},
    "then": {},
    "else": {},
    "dependentRequired": {},
    "dependentSchemas": {},
    "patternProperties": {},
    "propertyNames": {},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "contains": {},
    "minContains": 1,
    "maxContains": 1,
    "uniqueItems": True,
    "minProperties": 1,
    "maxProperties": 1,
    "$dynamicRef": "#a",
    "$anchor": "a",
    "nullable": True,
    "x-guidance": {"lenient": True},
    "additionalItems": False,
    "divisibleBy": 2,
    "anything": 1,
}


@pytest.mark.parametrize("keyword", UNENFORCED)
def test_a_keyword_that_is_not_enforced_is_named_with_its_place(keyword: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(f"#/properties/a/{keyword} cannot")):
        grammar_for({"properties": {"a": {keyword: UNENFORCED[keyword]}}})


def test_annotations_change_nothing_and_may_stand_anywhere() -> None:
    noise = {"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c", "x-order": 1}
    plain: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    noisy = {"$schema": "s", "$id": "i", **plain, **noise, "properties": {"a": {"type": "integer", **noise}}}
    assert grammar_for(noisy) == grammar_for(plain)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "text"}, "#/type"),
        ({"type": []}, "#/type"),
        ({"enum": []}, "#/enum"),
        ({"enum": "a"}, "#/enum"),
        ({"enum": [1e300]}, "#/enum"),
        ({"const": 1 << 60}, "#/const"),
        ({"format": "email"}, "#/format"),
        ({"minLength": -1}, "#/minLength"),
        ({"maxLength": True}, "#/maxLength"),
        ({"maxItems": 10**9}, "#/maxItems"),
        ({"minimum": "1"}, "#/minimum"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum"),
        ({"pattern": 1}, "#/pattern"),
        ({"items": [{}]}, "#/items"),
        ({"anyOf": []}, "#/anyOf"),
        ({"required": "a"}, "#/required"),
        ({"properties": []}, "#/properties"),
        ({"properties": {"a": 1}}, "#/properties/a"),
        ({"allOf": [{"properties": {"b": {"not": {}}}}]}, "#/allOf/0/properties/b/not"),
        ({"$defs": {"d": {"contains": {}}}}, "#/$defs/d/contains"),
        ({"type": "number", "multipleOf": 2}, "multipleOf"),
        ({"$ref": "https://example.org/x"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"$ref": "#/properties/a"}, "$ref"),
        ({"pattern": "a", "format": "date"}, "both"),
        ({"$defs": {"d": {"$defs": {}}}}, "#/$defs/d/$defs"),
        ({"const": float("nan")}, "finite"),
        ({"const": "\ud800"}, "surrogate"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(named)):
        grammar_for(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    ],
)
def test_a_schema_that_nothing_can_satisfy_or_prove_is_refused_before_the_first_token(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        constraint(schema)


def test_size_depth_and_number_are_bounded() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(MAX_DEPTH + 1):
        deep = {"items": deep}
    loop: dict[str, Any] = {}
    loop["items"] = loop
    wide = {"anyOf": [{}] * (MAX_SUBSCHEMAS + 1)}
    nested: Any = 1
    for _ in range(300):
        nested = [nested]
    for schema in (deep, loop, wide, {"title": "a" * MAX_SCHEMA_BYTES}, {"const": nested}):
        with pytest.raises(SchemaError):
            grammar_for(schema)


@pytest.mark.parametrize("schema", [[], "x", True, 1])
def test_a_schema_is_an_object(schema: Any) -> None:
    with pytest.raises(SchemaError, match="is an object"):
        grammar_for(schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*CHECKS, *UNENFORCED, "$defs", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*CHECKS, "$defs"]), json_values, max_size=4))
def test_any_json_becomes_a_grammar_or_one_of_our_errors(schema: dict[str, Any]) -> None:
    try:
        grammar = grammar_for(schema)
        constraint(schema)
    except SchemaError as error:
        assert str(error).endswith(".")
        return
    assert json.loads(grammar)["$ref"] == "#/$defs/root"
