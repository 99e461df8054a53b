"""Each keyword allows the values that jsonschema finds valid, written as a model writes them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from schema.machine import accepts, is_valid, written

from bimedix_edge.errors import SchemaError

EXAMPLES = settings(max_examples=40, deadline=None)
SAFE = (1 << 53) - 1
integers = st.integers(-SAFE, SAFE) | st.integers(-20, 20)
# a grammar allows DEL escaped in free text and unescaped in an enum; a compared text has only one of the spellings
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")
texts = st.text(characters, max_size=8) | st.text('abcابت😀"\\\n', max_size=6)
scalars = st.none() | st.booleans() | integers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
TYPES = ["null", "boolean", "integer", "string", "array", "object"]
kinds_of_values = st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True)


def judge(schema: dict[str, Any], value: object) -> None:
    assert accepts(schema, written(value)) == is_valid(schema, value), (schema, value)


@EXAMPLES
@given(kinds_of_values, values)
def test_type(kinds: list[str], value: object) -> None:
    judge({"type": kinds}, value)
    judge({"type": kinds[0]}, value)


@EXAMPLES
@given(st.lists(values, min_size=1, max_size=4), values)
def test_enum_and_const(choices: list[object], other: object) -> None:
    for value in [choices[0], other]:
        judge({"enum": choices}, value)
        judge({"const": choices[-1]}, value)


@EXAMPLES
@given(st.integers(0, 6), st.integers(0, 6), texts)
def test_lengths_are_counted_in_characters(low: int, high: int, value: str) -> None:
    assume(low <= high)
    judge({"type": "string", "minLength": low, "maxLength": high}, value)


@settings(max_examples=15, deadline=None)
@given(integers, integers, integers, st.sampled_from(["exclusiveMinimum", "minimum"]))
def test_bounds_of_integers(low: int, high: int, value: int, low_key: str) -> None:
    assume(low + 2 < high)
    schemas = [{"type": "integer", low_key: low, high_key: high} for high_key in ("maximum", "exclusiveMaximum")]
    for number in (value, low, high, low + 1, high - 1, low - 1, high + 1):
        for schema in schemas:
            judge(schema, number)


@EXAMPLES
@example(Decimal("0.000"), Decimal("0.001"), Decimal("0.0000"))
@given(st.decimals(-1000, 1000, places=3), st.decimals(-1000, 1000, places=3), st.decimals(-1100, 1100, places=4))
def test_bounds_of_numbers(low: Any, high: Any, value: Any) -> None:
    assume(low < high and (not value or abs(value) >= 0.001))  # json writes smaller ones with an exponent
    schema = {"type": "number", "minimum": float(low), "exclusiveMaximum": float(high)}
    # just below a bound, llguidance lets a whole number through as `0` or `0.00`, though not as `0.0`
    spelled = {written(float(value))} | ({written(int(value))} if value == int(value) else set())
    assert any(accepts(schema, text) for text in spelled) == is_valid(schema, float(value)), (schema, value)


@EXAMPLES
@given(st.integers(1, 500), st.integers(-5000, 5000))
def test_multiples(factor: int, value: int) -> None:
    judge({"type": "integer", "multipleOf": factor}, value)
    judge({"type": "integer", "multipleOf": factor}, value * factor)


@EXAMPLES
@given(st.integers(0, 4), st.integers(0, 4), st.lists(scalars, max_size=5))
def test_numbers_of_items(low: int, high: int, value: list[object]) -> None:
    assume(low <= high)
    judge({"type": "array", "items": {"type": ["integer", "string"]}, "minItems": low, "maxItems": high}, value)


@EXAMPLES
@given(kinds_of_values, st.lists(scalars, max_size=4), st.sampled_from([False, {"type": "null"}]))
def test_prefix_items(kinds: list[str], value: list[object], more: Any) -> None:
    judge({"type": "array", "prefixItems": [{"type": kind} for kind in kinds], "items": more}, value)


@EXAMPLES
@given(
    st.lists(st.sampled_from("abcd"), unique=True, max_size=4),
    st.sets(st.sampled_from("abcd"), max_size=3),
    st.sampled_from([False, {"type": "integer"}]),
    st.dictionaries(st.sampled_from([*"abcdeف", 'q"']), st.integers(0, 3) | st.just("x"), max_size=4),
)
def test_objects(named: list[str], required: set[str], more: Any, value: dict[str, object]) -> None:
    assume(more or required <= set(named))
    schema = {
        "type": "object",
        "properties": {key: {"type": "integer"} for key in named},
        "required": sorted(required),
        "additionalProperties": more,
    }
    # keys stand in the order of `properties`, then of `required`; others follow
    order = [*named, *sorted(required - set(named))]
    order += [key for key in value if key not in order]
    judge(schema, {key: value[key] for key in order if key in value})


@EXAMPLES
@given(st.sampled_from(["anyOf", "oneOf"]), kinds_of_values, values)
def test_alternatives(keyword: str, kinds: list[str], value: object) -> None:
    judge({keyword: [{"type": kind} for kind in kinds]}, value)


@EXAMPLES
@given(st.dictionaries(st.sampled_from("ab"), integers, max_size=3))
def test_all_of_objects(value: dict[str, int]) -> None:
    schema = {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]},
            {"$ref": "#/$defs/second"},
        ],
        "$defs": {"second": {"type": "object", "properties": {"b": {"type": "integer", "maximum": 9}}}},
    }
    judge(schema, dict(sorted(value.items())))


@EXAMPLES
@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=3), max_leaves=8))
def test_a_reference_may_be_recursive(value: list[Any]) -> None:
    tree = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
    judge({"$ref": "#/$defs/tree", "$defs": {"tree": tree}}, value)
    judge({"type": "array", "items": {"$ref": "#"}, "maxItems": 2}, value)


@EXAMPLES
@given(st.dates() | st.text("0123456789-", min_size=10, max_size=10))
def test_dates_are_those_of_the_calendar(value: Any) -> None:
    judge({"type": "string", "format": "date"}, str(value))


@pytest.mark.parametrize("year", ["0004", "0000", "1900", "2000", "2023", "2024", "2100", "0400", "9996"])
def test_leap_years(year: str) -> None:
    judge({"type": "string", "format": "date"}, f"{year}-02-29")


@EXAMPLES
@given(st.times(), st.integers(-23, 23), st.booleans())
def test_times(value: Any, offset: int, utc: bool) -> None:
    zone = "Z" if utc else f"{'-' if offset < 0 else '+'}{abs(offset):02}:30"
    assert accepts({"type": "string", "format": "time"}, written(f"{value.isoformat()}{zone}"))
    assert accepts({"type": "string", "format": "date-time"}, written(f"2024-02-29T{value.isoformat()}{zone}"))
    assert not accepts({"type": "string", "format": "time"}, written(value.isoformat()))


@EXAMPLES
@given(st.uuids())
def test_uuids(value: Any) -> None:
    assert accepts({"type": "string", "format": "uuid"}, written(str(value)))
    assert not accepts({"type": "string", "format": "uuid"}, written(str(value)[:-1]))


@EXAMPLES
@given(values)
def test_without_a_schema_any_object_and_nothing_else(value: object) -> None:
    assert accepts(None, written(value)) == isinstance(value, dict)


@pytest.mark.parametrize("text", ['{"a":1}', '{"a": 1}', '{"a": 1,"b": 2}', '{"a":1, "b":2}'])
def test_one_blank_after_a_comma_or_a_colon_is_all_there_is(text: str) -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    assert accepts(schema, text)
    assert not accepts(schema, text.replace(":", ":  "))
    assert not accepts(schema, text.replace("}", " }"))
    assert not accepts(schema, text.replace("{", "{\n"))


def test_an_object_has_only_the_keys_that_are_named_unless_others_are_allowed() -> None:
    schema: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
    assert not accepts(schema, '{"a":1,"b":2}')
    assert accepts({**schema, "additionalProperties": True}, '{"a":1,"b":2}')
    assert accepts({"type": "object", "required": ["b"], **schema}, '{"a":1,"b":2}')


def test_branches_of_one_of_are_closed_if_they_exclude_each_other_as_written() -> None:
    kinds: list[dict[str, Any]] = [
        {"type": "object", "properties": {"k": {"const": kind}, kind: {"type": "integer"}}, "required": ["k"]}
        for kind in "xy"
    ]
    schema: dict[str, Any] = {"oneOf": [{"$ref": "#/$defs/x"}, kinds[1]], "$defs": {"x": kinds[0]}}
    for value, valid in [
        ({"k": "x", "x": 1}, True),
        ({"k": "y"}, True),
        ({"k": "x", "y": 1}, False),
        ({"k": "z"}, False),
    ]:
        assert accepts(schema, written(value)) == valid
    # closed, these would exclude each other; as written, {"a": 1} is valid under both
    overlapping = [
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"properties": {"b": {}}, "type": "object"},
    ]
    with pytest.raises(SchemaError, match="oneOf"):
        accepts({"oneOf": overlapping}, '{"a":1}')


def test_numbers_that_readers_disagree_about_are_not_written() -> None:
    assert not accepts({"type": "integer"}, str(1 << 53))
    assert not accepts({"type": "number"}, "1e999")
    assert not accepts({}, "9" * 5000)
    assert accepts({"type": "number"}, "-0.25")
