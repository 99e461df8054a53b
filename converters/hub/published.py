"""Names for `pull`: the published checkpoints that `models/cards` describes, and any other repository."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from bimedix_edge.converters.decoder.quantize import FileType, file_type_named
from bimedix_edge.converters.source.card import Card, read_card
from bimedix_edge.errors import UsageError
from bimedix_edge.store import packaged

__all__ = ["Reference", "find_published", "published_cards"]

DEFAULT_TYPE = "Q4_K_M"
DEFAULT_REVISION = "main"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True)
class Reference:
    """A user's request: a card, whose `repository` and `revision` say what to fetch, and a type to convert to."""

    card: Card
    file_type: FileType


@cache
def published_cards() -> dict[str, Card]:
    """Return the cards of this installation by name.

    Raises:
        CheckpointError: A card is damaged.
    """
    folder = packaged("bimedix_edge.models", "cards")
    cards = [read_card(path) for path in sorted(folder.glob("*.toml"))]
    return {card.name: card for card in cards}


def find_published(text: str) -> Reference:
    """Parse `NAME[@REVISION][:TYPE]`, where NAME is a card's name or `ORG/REPO`.

    Args:
        text: For example `bimedix2-8b-bi:q4_k_m` or `MBZUAI/BiMediX2-8B@main`. The default revision is the card's, or
            `main`; the default type is Q4_K_M.

    Raises:
        UsageError: The text is not such a name, or the card or type does not exist; the message lists the known ones.
    """
    place, _, kind = text.partition(":")
    place, _, revision = place.partition("@")
    card = published_cards().get(place) or _card_of(place, text)
    if (revision and not _is_revision(revision)) or text.rstrip(":@") != text:
        raise UsageError(
            f"{text[:80]!r} is not a valid name. Write a branch, a tag or a commit after '@' and a type after ':'."
        )
    return Reference(replace(card, revision=revision or card.revision), file_type_named(kind or DEFAULT_TYPE))


def _card_of(repository: str, text: str) -> Card:
    """Return the card of a repository, or a new one with the defaults of a BiMediX2 checkpoint."""
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        names = ", ".join(published_cards())
        raise UsageError(
            f"There is no model {text[:80]!r} to pull. Name one of {names}, or a repository such as "
            "MBZUAI/BiMediX2-8B-Bi."
        )
    for card in published_cards().values():
        if card.repository.lower() == repository.lower():
            return card
    return Card(name=repository.partition("/")[2].lower(), repository=repository, revision=DEFAULT_REVISION)


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text
