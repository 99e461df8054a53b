"""The cards of the published checkpoints, and the references that `pull` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bimedix_edge.converters.hub.published import find_published, published_cards
from bimedix_edge.converters.source.card import read_card
from bimedix_edge.errors import CheckpointError, UsageError
from bimedix_edge.prompt import SYSTEM
from bimedix_edge.store import Store

FOLDER = Path(__file__).resolve().parents[1] / "models" / "cards"
NAMES = ["bimedix2-70b", "bimedix2-8b", "bimedix2-8b-bi", "bimedix2-8b-hf"]


def test_every_published_checkpoint_has_a_card_under_its_name() -> None:
    assert sorted(published_cards()) == NAMES == sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_card_states_everything(name: str, tmp_path: Path) -> None:
    card = published_cards()[name]
    assert Store(tmp_path, tmp_path).target(f"{card.name}:q4_k_m").parts[-2:] == (name, "q4_k_m")
    assert card.repository.lower() == f"mbzuai/{name}"
    assert (card.revision, card.licence, card.bos, card.aspect) == ("main", "CC-BY-NC-SA-4.0", 2, "pad")
    assert "not for clinical use" in card.notice
    assert card.system == SYSTEM
    assert set(card.languages) <= {"en", "ar"}
    assert card.description
    assert card.scores["clinical"]["average"] > card.scores["uphill"]["openqa"] > 50


def test_the_published_averages_are_those_of_their_parts() -> None:
    for name in ("bimedix2-8b", "bimedix2-8b-bi", "bimedix2-8b-hf"):
        clinical = dict(published_cards()[name].scores["clinical"])
        average = clinical.pop("average")
        assert len(clinical) == 10
        assert sum(clinical.values()) / 10 == pytest.approx(average, abs=0.06)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('scores = "high"', "scores"),
        ("[scores]\nuphill = 56.1", "object"),
        ('[scores.uphill]\nopenqa = "56.1"', "number"),
        ("[scores.uphill]\nopenqa = 561", "at most 100"),
    ],
)
def test_scores_are_tables_of_numbers(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_card(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bimedix2-8b-bi", ("bimedix2-8b-bi", "MBZUAI/BiMediX2-8B-Bi", "main", "Q4_K_M")),
        ("bimedix2-8b-bi:q8_0", ("bimedix2-8b-bi", "MBZUAI/BiMediX2-8B-Bi", "main", "Q8_0")),
        ("bimedix2-8b@v1.2:F16", ("bimedix2-8b", "MBZUAI/BiMediX2-8B", "v1.2", "F16")),
        ("mbzuai/bimedix2-8b", ("bimedix2-8b", "MBZUAI/BiMediX2-8B", "main", "Q4_K_M")),
        ("Clinic/My-Tuning@refs/pr/1", ("my-tuning", "Clinic/My-Tuning", "refs/pr/1", "Q4_K_M")),
    ],
)
def test_a_reference_is_a_card_or_a_repository(text: str, expected: tuple[str, ...]) -> None:
    found = find_published(text)
    assert (found.card.name, found.card.repository, found.card.revision, found.file_type.name) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bimedix", "bimedix2-8b-bi"),
        ("", "bimedix2-8b-bi"),
        ("a/b/c", "repository such as"),
        ("../x", "repository such as"),
        ("org/..", "repository such as"),
        ("org/a--b", "repository such as"),
        ("https://huggingface.co/MBZUAI/BiMediX2-8B", "no model 'https://.* repository such as"),
        ("bimedix2-8b:q3", "Q4_K_M"),
        ("bimedix2-8b:", "after ':'"),
        ("bimedix2-8b@", "after '@'"),
        ("bimedix2-8b@../../x", "after '@'"),
        ("bimedix2-8b@-x", "after '@'"),
    ],
)
def test_other_names_are_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_published(text)
