"""What `--schema` names, and the object that an answer became under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bimedix_edge.errors import InputError, SchemaError
from bimedix_edge.events import Done
from bimedix_edge.schema.grammar import MAX_SCHEMA_BYTES
from bimedix_edge.schema.reports import SCHEMA_NAMES, load_schema

__all__ = ["read_schema", "value_of"]


def read_schema(given: str) -> dict[str, Any]:
    """Return a shipped schema by its name, or that of a file.

    Raises:
        SchemaError: the file is not there, too large, or no JSON object.
    """
    if given in SCHEMA_NAMES:
        return load_schema(given)
    try:
        with Path(given).open("rb") as file:
            data = file.read(MAX_SCHEMA_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SchemaError(
            f"Expected {', '.join(SCHEMA_NAMES)} or a file with a JSON schema, but {given!r} is neither; choose one."
        ) from error
    if len(data) > MAX_SCHEMA_BYTES:
        raise SchemaError(f"Expected a schema of at most {MAX_SCHEMA_BYTES} bytes, but {given!r} has more; shorten it.")
    try:
        schema = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"Expected a JSON schema in {given!r}, but it is not JSON; correct it.") from error
    if not isinstance(schema, dict):
        raise SchemaError(f"Expected a JSON object in {given!r}, but it is something else; write a schema.")
    return schema


def value_of(done: Done) -> Any:
    """Return what an answer that was held to a schema says.

    Raises:
        InputError: it ended before the value was complete, or the value is nested too deep to be read.
    """
    if done.stop_reason != "end":
        raise InputError(
            f"Expected a complete JSON value, but after {done.usage.generated} tokens the answer was cut "
            f"({done.stop_reason}); raise --max-tokens or --ctx-size, or bound texts and lists in the schema."
        )
    try:
        return json.loads(done.text)
    except RecursionError as error:
        raise SchemaError(
            "Expected a value that can be read, but it is nested too deep; bound the recursion of the schema."
        ) from error
