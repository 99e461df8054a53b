"""The keywords of JSON Schema that a grammar enforces, and their allowed values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ANNOTATIONS", "CHECKS", "FORMATS", "MAX_INTEGER", "implied_type"]

# the largest integer that JSON readers agree on (RFC 7493, section 2.2)
MAX_INTEGER = (1 << 53) - 1
MAX_LENGTH = 100_000
MAX_ITEMS = 1000
MAX_PROPERTIES = 200
MAX_CHOICES = 500
MAX_CONSTANT_DEPTH = 16

# keywords without influence on validity
ANNOTATIONS = frozenset(
    "$schema $id $comment title description default examples deprecated readOnly writeOnly contentMediaType "
    "contentEncoding discriminator".split()
)

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# a keyword implies the type that it applies to
_IMPLIED = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_HEX = "[0-9a-f]"
# RFC 3339 (dates by the calendar, without leap seconds, which depend on the day) and RFC 4122
FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "uuid": f"^{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$",
}


def implied_type(schema: Mapping[str, Any]) -> str | list[str] | None:
    """Return the types a schema states, or the one type its keywords imply; None if they imply none or several."""
    stated: str | list[str] | None = schema.get("type")
    if stated is not None:
        return stated
    if {"enum", "const", "$ref", "allOf", "anyOf", "oneOf"} & schema.keys():
        return None
    kinds = [kind for kind, keywords in _IMPLIED.items() if any(keyword in schema for keyword in keywords)]
    return kinds[0] if len(kinds) == 1 else None


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def _count(most: int) -> Callable[[object], str | None]:
    return lambda value: None if _is_count(value, most) else f"a whole number from 0 to {most}"


def _number(value: object) -> str | None:
    return None if _is_number(value) else f"a number within +-{MAX_INTEGER}"


def _multiple(value: object) -> str | None:
    return None if _is_count(value, MAX_INTEGER) and value else f"a whole number from 1 to {MAX_INTEGER}"


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else "a string"


def _kind(value: object) -> str | None:
    kinds = value if isinstance(value, list) and value else [value]
    known = all(isinstance(kind, str) and kind in _TYPES for kind in kinds)
    return None if known else f"one or several of {', '.join(_TYPES)}"


def _format(value: object) -> str | None:
    known = isinstance(value, str) and value in FORMATS
    return None if known else f"one of the formats {', '.join(FORMATS)}"


def _value(value: object, depth: int = 0) -> str | None:
    """Check a constant; its numbers must be the same in each JSON reader."""
    if depth > MAX_CONSTANT_DEPTH:
        return f"a value at most {MAX_CONSTANT_DEPTH} deep"
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return next((wanted for child in children if (wanted := _value(child, depth + 1))), None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    return None


def _choices(value: object) -> str | None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
        return f"a list of 1 to {MAX_CHOICES} values"
    return _value(value)


def _names(value: object) -> str | None:
    named = isinstance(value, list) and len(value) <= MAX_PROPERTIES and all(isinstance(name, str) for name in value)
    return None if named else f"a list of at most {MAX_PROPERTIES} strings"


def _schemas(value: object) -> str | None:
    return None if isinstance(value, list) and value else "a list of at least one schema"


def _properties(value: object) -> str | None:
    if isinstance(value, dict) and len(value) <= MAX_PROPERTIES:
        return None
    return f"an object of at most {MAX_PROPERTIES} schemas"


def _schema(value: object) -> str | None:
    return None if isinstance(value, dict | bool) else "one schema"


# keyword -> check of its value: returns None, or in words what the value must be
CHECKS: dict[str, Callable[[object], str | None]] = {
    "type": _kind,
    "enum": _choices,
    "const": _value,
    "$ref": _text,
    "allOf": _schemas,
    "anyOf": _schemas,
    "oneOf": _schemas,
    "properties": _properties,
    "required": _names,
    "additionalProperties": _schema,
    "items": _schema,
    "prefixItems": _schemas,
    "minItems": _count(MAX_ITEMS),
    "maxItems": _count(MAX_ITEMS),
    "minLength": _count(MAX_LENGTH),
    "maxLength": _count(MAX_LENGTH),
    "pattern": _text,
    "format": _format,
    "minimum": _number,
    "maximum": _number,
    "exclusiveMinimum": _number,
    "exclusiveMaximum": _number,
    "multipleOf": _multiple,
}
