"""Proves that the branches of `oneOf` exclude each other, so that `oneOf` may be compiled as `anyOf`.

The proof uses types, constants, and keys that one branch requires and the other forbids with such a value. Without a
proof, branches count as overlapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Branches"]

_ALL = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_MAX_COMPARISONS = 20_000
_MAX_DEPTH = 6

Schema = dict[str, Any] | bool


class Branches:
    """Compares schemas of one document, with a bound on the work for all of them.

    Args:
        resolve: Returns the definition that a `$ref` names.
    """

    def __init__(self, resolve: Callable[[str], Schema]) -> None:
        self._resolve = resolve
        self._n_comparisons = 0

    def exclude_each_other(self, branches: list[Schema]) -> bool:
        """Return whether a proof exists that no value is valid under two of these branches."""
        return all(
            self._exclude(one, other, 0) for index, one in enumerate(branches) for other in branches[index + 1 :]
        )

    def _exclude(self, one: Schema, other: Schema, depth: int) -> bool:
        self._n_comparisons += 1
        if one is False or other is False:
            return True
        if one is True or other is True or depth > _MAX_DEPTH or self._n_comparisons > _MAX_COMPARISONS:
            return False
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        return (
            _kinds(one).isdisjoint(_kinds(other))
            or _constants_differ(one, other)
            or self._keys_exclude(one, other, depth)
            or self._keys_exclude(other, one, depth)
            or any(self._exclude(part, other, depth + 1) for part in self._parts(one))
            or any(self._exclude(one, part, depth + 1) for part in self._parts(other))
            or self._options_exclude(one, other, depth)
            or self._options_exclude(other, one, depth)
        )

    def _parts(self, schema: dict[str, Any]) -> Iterator[Schema]:
        """Yield the schemas that must hold too: the target of `$ref` and the parts of `allOf`."""
        if "$ref" in schema:
            yield self._resolve(schema["$ref"])
        yield from schema.get("allOf", ())

    def _options_exclude(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        return any(
            all(self._exclude(option, other, depth + 1) for option in one[keyword])
            for keyword in ("anyOf", "oneOf")
            if keyword in one
        )

    def _keys_exclude(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Return whether `other` forbids each value that `one` allows for a key it requires."""
        if _kinds(one) != {"object"} or _kinds(other) != {"object"}:
            return False
        more = other.get("additionalProperties", True)
        return any(
            self._exclude(
                one.get("properties", {}).get(key, True), other.get("properties", {}).get(key, more), depth + 1
            )
            for key in one.get("required", ())
        )


def _kinds(schema: dict[str, Any]) -> frozenset[str]:
    kinds = _ALL
    if "type" in schema:
        stated = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kinds &= frozenset(stated) | (frozenset({"integer"}) if "number" in stated else frozenset())
    if (constants := _constants(schema)) is not None:
        kinds &= frozenset(kind for value in constants for kind in _kinds_of(value))
    return kinds


def _kinds_of(value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int | float):
        return ("integer", "number")
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return (names.get(type(value), "null"),)


def _constants(schema: dict[str, Any]) -> list[object] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def _constants_differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, others = _constants(one), _constants(other)
    if mine is None or others is None:
        return False
    # lists and objects are not compared, and 1 equals true in Python: both then count as equal
    (scalars, n_more), (other_scalars, n_other_more) = _sorted_out(mine), _sorted_out(others)
    return scalars.isdisjoint(other_scalars) and not (n_more and n_other_more)


def _sorted_out(values: list[object]) -> tuple[set[object], int]:
    """Return the scalars, and the number of lists and objects."""
    scalars = [value for value in values if not isinstance(value, list | dict)]
    return set(scalars), len(values) - len(scalars)
