"""`bimedix-edge pull`: fetch a published checkpoint and convert it; the only command that uses a network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from bimedix_edge.cli.bars import StageBars
from bimedix_edge.cli.report import report
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.hub.fetch import download_directory, fetched
from bimedix_edge.converters.hub.hub import Snapshot, describe
from bimedix_edge.converters.hub.published import find_published
from bimedix_edge.converters.source.card import Card
from bimedix_edge.errors import UsageError
from bimedix_edge.settings import load_settings
from bimedix_edge.staging import remove_directory
from bimedix_edge.store import Store

__all__ = ["pull"]


@click.command()
@click.argument("model", metavar="NAME")
@click.option("-n", "--name", metavar="NAME", help="Install as NAME:TYPE.  [default: the card's or repository's name]")
@click.option("--accept-licence", is_flag=True, help="Accept the licence of the weights without being asked.")
@click.option("--delete-source", is_flag=True, help="Delete the fetched files after the conversion.")
@click.option("--force", is_flag=True, help="Replace an installed model.")
def pull(model: str, name: str | None, accept_licence: bool, delete_source: bool, force: bool) -> None:
    """Fetch the checkpoint NAME over the network and convert it.

    NAME is bimedix2-8b, bimedix2-8b-bi (the one for Arabic), bimedix2-8b-hf, bimedix2-70b, or any ORG/REPO of the hub;
    @REVISION after it chooses a branch, a tag or a commit, and :TYPE the type of the decoder's weights (Q4_K_M).
    Run the command again to continue an interrupted download.
    """
    reference = find_published(model)
    settings = load_settings()
    label = f"{name or reference.card.name}:{reference.file_type.name.lower()}"
    target = Store(settings.store_dir, settings.cache_dir).target(label)
    # before fetching gigabytes for nothing
    if target.exists() and not force:
        raise UsageError(f"{label} is installed already. Add --force to replace it, or choose another --name.")
    _check_answerable(reference.card, accepted=accept_licence)
    snapshot = describe(reference.card.repository, reference.card.revision)
    card = _card(reference.card, snapshot)
    _agree(card, snapshot, accepted=accept_licence)
    source = download_directory(settings.cache_dir, snapshot)
    with (
        StageBars(plain_console(stderr=True)) as bars,
        fetched(snapshot, source, target=target, file_type=reference.file_type, progress=bars.show),
    ):
        manifest = convert(
            source,
            target,
            ConvertOptions(file_type=reference.file_type.name, name=label, card=card, vision="auto", replace=force),
            bars.show,
        )
    _end_source(source, delete=delete_source)
    report(manifest, target)


def _check_answerable(card: Card, *, accepted: bool) -> None:
    """Refuse before anything uses the network if there is no terminal to accept the licence on."""
    if not accepted and not sys.stdin.isatty():
        raise UsageError(
            f"The licence of {card.repository} must be accepted ({card.licence}: for research, not for clinical or "
            "commercial use), and there is no terminal to ask on. Add --accept-licence."
        )


def _card(card: Card, snapshot: Snapshot) -> Card:
    """Return the card with the commit that was found, and with the hub's licence if the card is not one of ours."""
    licence = snapshot.licence if snapshot.licence and not card.description else card.licence
    return replace(card, revision=snapshot.commit, licence=licence)


def _agree(card: Card, snapshot: Snapshot, *, accepted: bool) -> None:
    click.echo(f"{card.repository} at {snapshot.commit[:12]}\nLicence: {card.licence}", err=True)
    if snapshot.licence and snapshot.licence.lower() != card.licence.lower():
        click.echo(f"The hub says: {snapshot.licence}", err=True)
    click.echo(card.notice, err=True)
    if not accepted and not click.confirm("Do you accept this licence?", err=True):
        raise UsageError("The licence was not accepted. Nothing was fetched.")


def _end_source(source: Path, *, delete: bool) -> None:
    if delete:
        remove_directory(source)
        click.echo("the fetched files were deleted")
    else:
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        click.echo(f"the fetched files ({size / 1e6:.1f} MB) are kept in {source}")
