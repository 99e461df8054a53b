"""`bimedix-edge models`: what is installed."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.table import Table

from bimedix_edge.bundle import read_manifest, verify_bundle
from bimedix_edge.cli.opening import work_progress
from bimedix_edge.cli.report import quality_text
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.devices import estimate_memory
from bimedix_edge.errors import UsageError
from bimedix_edge.settings import load_settings
from bimedix_edge.store import Store

__all__ = ["models"]


@click.group()
def models() -> None:
    """List, show, verify and remove installed models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the installed models."""
    bundles = _store().list()
    if as_json:
        rows = [
            {
                "name": bundle.name,
                "directory": str(bundle.directory),
                "fault": bundle.fault,
                "size_bytes": sum(entry.size_bytes for entry in bundle.manifest.files.values())
                if bundle.manifest
                else None,
            }
            for bundle in bundles
        ]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not bundles:
        click.echo("No model is installed. `bimedix-edge convert CHECKPOINT` installs one; until then `ask` and `chat`")
        click.echo("use the demo model.")
        return
    table = Table("name", "size", "type", "licence", box=None, pad_edge=False)
    for bundle in bundles:
        if bundle.manifest is None:
            table.add_row(bundle.name, "", "damaged", bundle.fault)
            continue
        size = sum(entry.size_bytes for entry in bundle.manifest.files.values())
        table.add_row(bundle.name, f"{size / 1e6:.0f} MB", bundle.manifest.decoder.file_type, bundle.manifest.licence)
    plain_console().print(table)


@models.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def show(model: str, as_json: bool) -> None:
    """Show what MODEL (a name or a directory) is."""
    directory = _store().find(model)
    manifest = read_manifest(directory)
    if as_json:
        click.echo(json.dumps(asdict(manifest), ensure_ascii=False, indent=2))
        return
    decoder, vision = manifest.decoder, manifest.vision
    settings = load_settings()
    need = estimate_memory(manifest, settings.ctx_size)
    rows = {
        "name": manifest.name,
        "directory": str(directory),
        "decoder": f"{decoder.file_type}, {decoder.n_layer} layers, width {decoder.n_embd}, "
        f"{decoder.n_head}/{decoder.n_head_kv} heads, {decoder.n_vocab} tokens",
        "vision": f"{manifest.preprocessing.image_size_px} px, {vision.n_tokens} tokens an image, {vision.weights}",
        "memory": f"about {need.total_bytes / 1e6:.0f} MB with {settings.ctx_size} tokens of context",
        "source": ", ".join(f"{key} {value[:64]}" for key, value in manifest.source.items()),
        "licence": manifest.licence,
        "notice": manifest.notice,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows.items():
        table.add_row(key, value)
    plain_console().print(table)
    if manifest.quality.types:
        click.echo(quality_text(manifest.quality))


@models.command()
@click.argument("model")
def verify(model: str) -> None:
    """Check every byte of MODEL (a name or a directory) against its manifest."""
    directory = _store().find(model)
    manifest = read_manifest(directory)
    total = sum(entry.size_bytes for entry in manifest.files.values())
    with work_progress(plain_console(stderr=True), "hashing", total) as advance:
        verify_bundle(directory, advance)
    click.echo(f"{manifest.name}: {len(manifest.files)} files, {total} bytes, as the manifest says")


@models.command()
@click.argument("model")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(model: str, yes: bool) -> None:
    """Remove the installed MODEL (a name)."""
    store = _store()
    bundle = store.installed(model)
    size = sum(path.stat().st_size for path in bundle.directory.iterdir())
    what = f"{bundle.name} ({size / 1e6:.1f} MB in {bundle.directory})"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"Expected --yes to remove {what}, since there is no terminal to ask on; add it.")
        if not click.confirm(f"Remove {what}?", err=True):
            raise UsageError(f"Expected a yes to remove {bundle.name}, but it was not given; nothing was removed.")
    store.remove(bundle)
    click.echo(f"removed {what}")


def _store() -> Store:
    settings = load_settings()
    return Store(settings.store_dir, settings.cache_dir)
