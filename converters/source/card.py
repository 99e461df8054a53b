"""A model card: what the user of a checkpoint must know and the checkpoint itself does not state.

    name = "bimedix2-8b"
    repository = "MBZUAI/BiMediX2-8B"
    revision = "main"
    licence = "CC-BY-NC-SA-4.0"
    notice = "Research model, not for clinical use."
    languages = ["en", "ar"]

    [prompt]
    bos = 2
    system = "…"

    [preprocessing]
    aspect = "pad"

    [scores.uphill]
    openqa = 56.1

Every field is optional, and a field that is not listed here is refused. `description` and `[scores]` are for people
and for the evaluation commands; scores are tables of numbers. A checkpoint may contain its own card as `card.toml`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bimedix_edge.converters.source.config import Aspect
from bimedix_edge.converters.source.strict_json import Fields
from bimedix_edge.errors import CheckpointError
from bimedix_edge.prompt import SYSTEM

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CARD", "LICENCE", "NOTICE", "Card", "read_card"]

CARD = "card.toml"
LICENCE = "CC-BY-NC-SA-4.0"
NOTICE = "Research model, not for clinical use. BiMediX2 weights are licensed CC BY-NC-SA 4.0."
_MAX_CARD_BYTES = 1 << 20
_FIELDS = {"name", "repository", "revision", "licence", "notice", "languages", "description"}
_TABLES = {"prompt": {"bos", "system"}, "preprocessing": {"aspect"}, "scores": None}


@dataclass(frozen=True)
class Card:
    """The fields of a card; the defaults are those of the published BiMediX2 checkpoints.

    Attributes:
        name: Name of the model; empty for the directory's name.
        repository: Where the model is published, such as `MBZUAI/BiMediX2-8B`, or empty.
        licence: SPDX identifier.
        bos: Number of BOS tokens at the start of a prompt. LLaVA's training code puts two, and the checkpoints in
            transformers' layout have the same weights under other names.
        description: One sentence for people.
        scores: Scores that its authors published: table, measure, value.
    """

    name: str = ""
    repository: str = ""
    revision: str = ""
    licence: str = LICENCE
    notice: str = NOTICE
    languages: tuple[str, ...] = field(default=("en", "ar"))
    bos: int = 2
    system: str = SYSTEM
    aspect: Aspect | None = None
    description: str = ""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def read_card(path: Path) -> Card:
    """Read a card.

    Args:
        path: A TOML file.

    Raises:
        CheckpointError: The card cannot be read, does not parse, or has an unknown field or a field of another type.
    """
    try:
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise CheckpointError(f"The card {path} is longer than {_MAX_CARD_BYTES} bytes. Shorten it.")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"The card {path} cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The card {path} is not valid TOML ({str(error)[:120]}). Correct it.") from error
    _check_names(data, path)
    return _card(Fields(data, path.name))


def _check_names(data: dict[str, Any], path: Path) -> None:
    unknown = sorted(data.keys() - _FIELDS - _TABLES.keys())
    for table, allowed in _TABLES.items():
        if allowed is not None and isinstance(data.get(table), dict):
            unknown += [f"{table}.{name}" for name in sorted(data[table].keys() - allowed)]
    if unknown:
        raise CheckpointError(f"The card {path} has unknown fields: {', '.join(unknown)[:120]}. Remove them.")


def _card(fields: Fields) -> Card:
    empty = Fields({}, fields.where)
    prompt = fields.child("prompt") if "prompt" in fields else empty
    preprocessing = fields.child("preprocessing") if "preprocessing" in fields else empty
    languages = fields.items("languages") if "languages" in fields else list(Card().languages)
    aspect: Aspect | None = None
    if "aspect" in preprocessing:
        aspect = "pad" if preprocessing.choice("aspect", ("pad", "crop")) == "pad" else "crop"
    return Card(
        name=fields.text("name", ""),
        repository=fields.text("repository", ""),
        revision=fields.text("revision", ""),
        licence=fields.text("licence", LICENCE),
        notice=fields.text("notice", NOTICE),
        languages=tuple(str(language) for language in languages),
        bos=prompt.integer("bos", Card().bos, low=1, high=2),
        system=prompt.text("system", SYSTEM),
        aspect=aspect,
        description=fields.text("description", ""),
        scores=_scores(fields.child("scores")) if "scores" in fields else {},
    )


def _scores(tables: Fields) -> dict[str, dict[str, float]]:
    children = {name: tables.child(name) for name in tables.keys()}  # noqa: SIM118  not a dict
    return {
        name: {measure: table.number(measure, low=-1.0, high=100.0) for measure in table.keys()}  # noqa: SIM118
        for name, table in children.items()
    }
