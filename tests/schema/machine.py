"""A vocabulary of bytes, to test a grammar without a model, and jsonschema as an independent judge of values."""

from __future__ import annotations

import datetime
import json
import random
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from bimedix_edge.decoder.constraint import Constraint, ConstraintTokens
from bimedix_edge.schema.grammar import grammar_for

END = 256
_BYTES = [bytes([byte]) for byte in range(256)]
VOCABULARY = ConstraintTokens([*_BYTES, b"<end>"], [END], END, lambda text: list(text.encode()))

_FORMATS = FormatChecker(formats=["date", "uuid"])


@_FORMATS.checks("time", raises=ValueError)
def _is_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.time.fromisoformat(_padded(text)).tzinfo is not None


@_FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.datetime.fromisoformat(_padded(text)).tzinfo is not None


def _padded(text: str) -> str:
    """Return a time with six digits of a second and without Z, as Python 3.10 needs it."""
    before, dot, after = text.replace("Z", "+00:00").partition(".")
    return f"{before}.{after[:-6].ljust(6, '0')}{after[-6:]}" if dot else before


def constraint(schema: dict[str, Any] | None) -> Constraint:
    return VOCABULARY.constraint(grammar_for(schema))


def accepts(schema: dict[str, Any] | None, text: str) -> bool:
    """Return whether an answer under `schema` can be exactly this text."""
    held = constraint(schema)
    for byte in text.encode("utf-8"):
        if byte not in held.allowed():
            return False
        held.accept(byte)
    return END in held.allowed()


def is_valid(schema: dict[str, Any], value: object) -> bool:
    """Return the verdict of jsonschema."""
    return bool(Draft202012Validator(schema, format_checker=_FORMATS).is_valid(value))


def written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def walk(schema: dict[str, Any] | None, rng: random.Random, most: int = 600) -> str | None:
    """Return what a random model writes under a schema; None if it does not end within `most` bytes."""
    held = constraint(schema)
    answer = bytearray()
    while len(answer) < most:
        allowed = held.allowed()
        # random, but biased towards the end
        closing = [byte for byte in (END, *b'"}]') if byte in allowed]
        byte = rng.choice(closing) if closing and rng.random() < 0.3 else int(rng.choice(allowed))
        if byte == END:
            return answer.decode("utf-8")
        held.accept(byte)
        answer.append(byte)
    return None
