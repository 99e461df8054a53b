"""Turns a JSON schema into the grammar that constrains an answer.

Each answer under the grammar is valid under the schema. A rule that the grammar cannot enforce is an error that names
it, never ignored. The reverse does not hold: the grammar leaves out values whose end a model may never reach (see
`grammar_for`).

Nothing is compiled here, so that the server can check a schema in a process without native code; `constraint.py`
compiles the text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bimedix_edge.errors import SchemaError
from bimedix_edge.schema.branches import Branches
from bimedix_edge.schema.keywords import ANNOTATIONS, CHECKS, FORMATS, MAX_INTEGER, implied_type
from bimedix_edge.schema.patterns import portable_pattern

__all__ = ["MAX_DEPTH", "MAX_SCHEMA_BYTES", "MAX_SUBSCHEMAS", "grammar_for"]

MAX_SCHEMA_BYTES = 1 << 16
MAX_SUBSCHEMAS = 1000
MAX_DEPTH = 24
_MAX_PATH_CHARACTERS = 120
# depth of a value where the schema allows anything
_OPEN_DEPTH = 5
# at most one blank after a comma or a colon: a model could write blanks without end, and each costs a step
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

# suffix of the name of each definition's second form
_AS_WRITTEN = "-as-written"
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf"})

Schema = dict[str, Any] | bool


def grammar_for(schema: dict[str, Any] | None) -> str:
    """Return the grammar of the JSON values that a schema allows.

    The grammar is narrower than the schema:

    * Keys come in the order of `properties`.
    * An object with named `properties` has no others, unless `additionalProperties` allows them; an array with
      `prefixItems` has no other items, unless `items` allows them.
    * A schema without `type` has the type that its other keywords imply.
    * Numbers are within +-(2^53 - 1) and have no exponent.
    * Where the schema allows any value, it is at most five levels deep.

    Keys that `properties` does not name may repeat.

    Args:
        schema: JSON Schema, draft 2020-12, as parsed JSON; None allows any JSON object.

    Returns:
        Text for `Sampling.grammar`.

    Raises:
        SchemaError: It is not a schema, too large, or has a keyword, format or pattern that cannot be enforced. The
            message has its name and place.

    Source: https://json-schema.org/draft/2020-12, Core and Validation.
    """
    if schema is None:
        schema = {"type": "object"}
    _check_size(schema)
    return json.dumps(_Document(schema).grammar(), ensure_ascii=False, allow_nan=False)


def _check_size(schema: object) -> None:
    if not isinstance(schema, dict):
        raise SchemaError("A JSON schema is an object, but another value was given. Write an object.")
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode("utf-8"))
    except UnicodeEncodeError as error:
        raise SchemaError("The schema has half of a surrogate pair. Write the whole character.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(
            "The schema has a value that is not JSON, not finite or nested without end. Correct it."
        ) from error
    if size > MAX_SCHEMA_BYTES:
        raise SchemaError(
            f"The schema has {size} bytes, and at most {MAX_SCHEMA_BYTES} are allowed. Split it, or leave out what is "
            "not needed."
        )


class _Document:
    """A schema with its definitions, checked and rewritten so that the compiler can read it in one way only."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        # JSON pointer -> name in the grammar, and name -> schema
        self._names: dict[str, str] = {"": "root"}
        self._targets: dict[str, Schema] = {"root": root}
        self._n_subschemas = 0
        self._one_ofs: list[tuple[Mapping[str, Any], str]] = []
        self._branches = Branches(lambda reference: self._targets[self._name(reference, "#")])
        for section in ("$defs", "definitions"):
            for key, target in _mapping(root.get(section, {}), f"#/{section}").items():
                pointer = f"/{section}/{key.replace('~', '~0').replace('/', '~1')}"
                self._names[pointer] = f"d{len(self._names)}"
                self._targets[self._names[pointer]] = target

    def grammar(self) -> dict[str, Any]:
        """Return the schema in the form that `constraint.py` compiles."""
        for pointer, name in self._names.items():
            self._check(self._targets[name], f"#{pointer}", 0)
        definitions = _open_values()
        self._check_branches()
        for name, target in self._targets.items():
            definitions[name] = self._rewritten(target)
            definitions[name + _AS_WRITTEN] = self._rewritten(target, joined=True)
        return {"x-guidance": _LAYOUT, "$ref": "#/$defs/root", "$defs": definitions}

    def _check(self, schema: object, path: str, depth: int) -> None:
        """Refuse values that are not schemas, and rules that cannot be enforced."""
        self._n_subschemas += 1
        if self._n_subschemas > MAX_SUBSCHEMAS or depth > MAX_DEPTH:
            raise SchemaError(
                f"The schema is too large at {_shown(path)}: at most {MAX_SUBSCHEMAS} subschemas, {MAX_DEPTH} deep, "
                "are allowed. Simplify it."
            )
        if isinstance(schema, bool):
            return
        for keyword, value in _mapping(schema, path).items():
            place = f"{path}/{keyword}"
            if keyword in ("$defs", "definitions") and schema is self._root:
                continue
            if keyword in ANNOTATIONS or (keyword.startswith("x-") and keyword != "x-guidance"):
                continue
            if keyword not in CHECKS:
                hint = "Name null in `type`" if keyword == "nullable" else "Leave it out, and check the answer yourself"
                raise SchemaError(f"{_shown(place)} cannot be enforced. {hint}.")
            if (wanted := CHECKS[keyword](value)) is not None:
                raise SchemaError(f"{_shown(place)} must be {wanted}. Correct the schema.")
        self._check_together(_mapping(schema, path), path)
        for step, child in _children(_mapping(schema, path)):
            self._check(child, f"{path}/{step}", depth + 1)

    def _check_together(self, schema: Mapping[str, Any], path: str) -> None:
        if "$ref" in schema:
            self._name(schema["$ref"], path)
        if "oneOf" in schema:
            self._one_ofs.append((schema, path))
        if "pattern" in schema:
            portable_pattern(schema["pattern"], _shown(f"{path}/pattern"))
            if "format" in schema:
                raise SchemaError(f"{_shown(path)} has both `format` and `pattern`. Choose one.")
        if "multipleOf" in schema and schema.get("type") != "integer":
            raise SchemaError(
                f"{_shown(path)} has `multipleOf` without the type integer, and multiples of fractions depend on "
                'rounding. Add "type": "integer", or leave `multipleOf` out.'
            )

    def _check_branches(self) -> None:
        """Refuse `oneOf` unless its branches exclude each other; all references were checked before."""
        for schema, path in self._one_ofs:
            if not self._branches.exclude_each_other(schema["oneOf"]):
                raise SchemaError(
                    f"The branches of {_shown(path)}/oneOf may overlap: neither types nor constants of a required key "
                    "exclude it. Use `anyOf`, or add `type` and `required`."
                )

    def _name(self, reference: str, path: str) -> str:
        pointer = reference[1:] if reference.startswith("#") else None
        if pointer not in self._names:
            raise SchemaError(
                f"The `$ref` at {_shown(path)} has no definition. It must be # or #/$defs/NAME of the same schema; "
                "nothing is fetched."
            )
        return self._names[pointer]

    def _rewritten(self, schema: Schema, *, joined: bool = False) -> Schema:
        """Return a schema in the form that is compiled.

        Args:
            schema: A checked schema.
            joined: Whether another schema constrains the same values too. Then it is not narrowed: two closed objects
                would exclude each other's keys.
        """
        if isinstance(schema, bool):
            return _open_value(_OPEN_DEPTH) if schema and not joined else schema
        result = {keyword: value for keyword, value in schema.items() if keyword in CHECKS}
        joined = joined or (len(result) > 1 and not _COMBINING.isdisjoint(result))
        if "$ref" in result:
            result["$ref"] = f"#/$defs/{self._name(result['$ref'], '#')}{_AS_WRITTEN if joined else ''}"
        if "pattern" in result:
            result["pattern"] = portable_pattern(result["pattern"], "#")
        if "format" in result:
            result["pattern"] = FORMATS[result.pop("format")]
        for keyword, rebuild in _REBUILDERS.items():
            if keyword in result:
                several = keyword == "allOf" and len(result[keyword]) > 1
                result[keyword] = rebuild(result[keyword], functools.partial(self._rewritten, joined=joined or several))
        if "oneOf" in result:
            # the branches exclude each other as written, and these are narrower
            options = {"anyOf": result.pop("oneOf")}
            result = {**result, "allOf": [*result.get("allOf", ()), options]} if result else options
        return result if joined else _closed(result)


def _closed(schema: dict[str, Any]) -> Schema:
    """Return a schema that stands alone, narrowed to values whose end a model reaches."""
    if not schema:
        return _open_value(_OPEN_DEPTH)
    kind = implied_type(schema)
    kinds = kind if isinstance(kind, list) else [kind]
    result = {**schema, "type": kind} if kind else dict(schema)
    if "object" in kinds and "additionalProperties" not in result:
        named = "properties" in result and set(result.get("required", ())) <= set(result["properties"])
        result["additionalProperties"] = False if named else _open_value(_OPEN_DEPTH - 1)
    if "array" in kinds and "items" not in result:
        named = len(result.get("prefixItems", ())) >= max(1, result.get("minItems", 0))
        result["items"] = False if named else _open_value(_OPEN_DEPTH - 1)
    if ("number" in kinds or "integer" in kinds) and not {"enum", "const"} & result.keys():
        if "minimum" not in result and "exclusiveMinimum" not in result:
            result["minimum"] = -MAX_INTEGER
        if "maximum" not in result and "exclusiveMaximum" not in result:
            result["maximum"] = MAX_INTEGER
    return result


def _open_values() -> dict[str, Schema]:
    """Return definitions of any value: `open0` is a scalar, and each further one allows one more level."""
    number = {"type": "number", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
    scalars: list[Schema] = [{"type": ["null", "boolean", "string"]}, number]
    found: dict[str, Schema] = {"open0": {"anyOf": scalars}}
    for depth in range(1, _OPEN_DEPTH + 1):
        inner = _open_value(depth - 1)
        lists: list[Schema] = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        found[f"open{depth}"] = {"anyOf": [*scalars, *lists]}
    return found


def _open_value(depth: int) -> dict[str, Any]:
    return {"$ref": f"#/$defs/open{depth}"}


Rewrite = Callable[[Schema], Schema]


def _rebuilt_list(value: list[Schema], rewrite: Rewrite) -> list[Schema]:
    return [rewrite(child) for child in value]


def _rebuilt_one(value: Schema, rewrite: Rewrite) -> Schema:
    return rewrite(value)


def _rebuilt_mapping(value: dict[str, Schema], rewrite: Rewrite) -> dict[str, Schema]:
    return {key: rewrite(child) for key, child in value.items()}


# keywords whose values are schemas
_REBUILDERS: dict[str, Callable[[Any, Rewrite], Any]] = {
    "allOf": _rebuilt_list,
    "anyOf": _rebuilt_list,
    "oneOf": _rebuilt_list,
    "prefixItems": _rebuilt_list,
    "items": _rebuilt_one,
    "additionalProperties": _rebuilt_one,
    "properties": _rebuilt_mapping,
}


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly inside a schema, each with its path."""
    for keyword in _REBUILDERS:
        value = schema.get(keyword)
        if isinstance(value, list):
            yield from ((f"{keyword}/{index}", child) for index, child in enumerate(value))
        elif keyword == "properties" and isinstance(value, dict):
            yield from ((f"{keyword}/{key}", child) for key, child in value.items())
        elif value is not None:
            yield keyword, value


def _mapping(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError(f"{_shown(path)} is neither an object nor a boolean. Correct the schema.")
    return value


def _shown(path: str) -> str:
    """Return a place in a schema for a message: printable and not too long."""
    text = "".join(char if char.isprintable() else "?" for char in path)
    return text if len(text) <= _MAX_PATH_CHARACTERS else f"…{text[-_MAX_PATH_CHARACTERS:]}"
