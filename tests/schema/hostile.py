"""Schemas that cost time or memory; anyone with a key may send one in a request."""

from __future__ import annotations

from typing import Any


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _text(pattern: str, **rest: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, **rest}


def _list(item: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "maxItems": most}


def _alternatives(levels: int) -> dict[str, Any]:
    if levels == 0:
        return {"type": "object", "required": ["k"]}
    return {"anyOf": [_alternatives(levels - 1)] * 4}


_TREE = {"$ref": "#/$defs/a"}
_NESTED = _list(_list(_list({"type": "string", "maxLength": 1000}, 1000), 1000), 1000)

HOSTILE: dict[str, dict[str, Any]] = {
    "deep": _deep(20),
    "long text": {"type": "string", "minLength": 90_000, "maxLength": 100_000},
    "long list": {**_list({"type": "string", "maxLength": 1000}, 1000), "minItems": 500},
    "nested lists": _NESTED,
    "alternatives that a backtracking matcher tries all": _text("^(a|b)*a(a|b){30}$"),
    "repetitions side by side": _text("(a*)*b(a|aa)*c{1,500}(x{1,50}y{1,50}){1,50}"),
    "a gap that moves": _text(".{0,100}a.{100}b.{0,100}"),
    "repetitions of repetitions": _text("^((((a{1,100}){1,100}){1,100}){1,100})$"),
    "words": _text("^(\\w+\\s?){1,200}$", maxLength=500),
    "pattern and length": _text("a.{200}b", minLength=100, maxLength=5000),
    "many keys": {"properties": {f"p{index}": {"type": "string", "maxLength": 100} for index in range(200)}},
    "many keys and others": {
        "type": "object",
        "properties": {f"p{index}": {"type": "string"} for index in range(200)},
        "additionalProperties": {"type": "string"},
    },
    "many branches": {
        "anyOf": [
            {
                "type": "object",
                "properties": {f"p{index}": {"type": "integer"}, "z": _text(f"a.{{{index}}}b")},
                "required": ["z"],
            }
            for index in range(200)
        ]
    },
    "a product of branches": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{row}{column}": {"type": "integer"}}} for column in range(6)]}
            for row in range(8)
        ]
    },
    "a tree read in four ways": {
        **_TREE,
        "$defs": {
            "a": {
                "anyOf": [
                    {"type": "array", "items": _TREE},
                    _list(_TREE, 5),
                    {"prefixItems": [_TREE]},
                    {"type": "string"},
                ]
            }
        },
    },
    "objects that start alike": {
        **_TREE,
        "$defs": {"a": {"anyOf": [{"properties": {"a": _TREE, f"b{index}": {}}} for index in range(30)]}},
    },
    "many choices": {"enum": [f"x{index * 7919}" for index in range(500)]},
    "choices that start alike": {"enum": ["x" * length for length in range(1, 300)]},
    "branches that must all be compared": {
        "oneOf": [{"enum": [f"{row}-{column}" for column in range(90)]} for row in range(60)]
    },
    "branches of branches": {"oneOf": [_alternatives(4), _alternatives(4)]},
    "a large factor": {"type": "integer", "multipleOf": 982_451_653},
    "patterns that must all match": {"allOf": [_text(f"[a-z]{{{size}}}x.{{{3 * size}}}") for size in range(1, 12)]},
}
