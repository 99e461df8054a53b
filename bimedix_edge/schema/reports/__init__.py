"""JSON schemas for common outputs: `report` (findings and impression), `vqa` (one answer), `summary`.

Their texts and lists are bounded, so that an answer ends. The notice is not part of them: the program adds it to the
model's answer.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from bimedix_edge.errors import UsageError

__all__ = ["SCHEMA_NAMES", "load_schema"]

SCHEMA_NAMES = ("report", "summary", "vqa")


def load_schema(name: str) -> dict[str, Any]:
    """Return a shipped schema, JSON Schema draft 2020-12.

    Raises:
        UsageError: No schema has that name.
    """
    if name not in SCHEMA_NAMES:
        raise UsageError(f"There is no schema {name!r}. Choose one of {', '.join(SCHEMA_NAMES)}.")
    text = importlib.resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
