"""The schema of `--schema`, and the object of an answer under it."""

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
    """Return a shipped schema by its name, or the schema in a file.

    Raises:
        SchemaError: The file does not exist, is too large, or is not a JSON object.
    """
    if given in SCHEMA_NAMES:
        return load_schema(given)
    try:
        with Path(given).open("rb") as file:
            data = file.read(MAX_SCHEMA_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SchemaError(
            f"{given!r} is not a schema. Choose {', '.join(SCHEMA_NAMES)} or a file with a JSON schema."
        ) from error
    if len(data) > MAX_SCHEMA_BYTES:
        raise SchemaError(f"{given!r} is larger than {MAX_SCHEMA_BYTES} bytes, the limit of a schema. Shorten it.")
    try:
        schema = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{given!r} is not JSON. Correct it.") from error
    if not isinstance(schema, dict):
        raise SchemaError(f"{given!r} is not a JSON object. Write a JSON schema.")
    return schema


def value_of(done: Done) -> Any:
    """Return the value of an answer under a schema.

    Raises:
        InputError: The answer ended before the value was complete, or the value is nested too deep to be read.
    """
    if done.stop_reason != "end":
        raise InputError(
            f"The JSON value is incomplete: after {done.usage.generated} tokens the answer was cut "
            f"({done.stop_reason}). Raise --max-tokens or --ctx-size, or bound texts and lists in the schema."
        )
    try:
        return json.loads(done.text)
    except RecursionError as error:
        raise SchemaError("The JSON value is nested too deep to be read. Bound the recursion of the schema.") from error
