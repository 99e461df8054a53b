"""`bimedix-edge models`: the installed models."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from bimedix_edge.bundle import Manifest, read_manifest, verify_bundle
from bimedix_edge.cli.opening import work_progress
from bimedix_edge.cli.plan_report import plan_table
from bimedix_edge.cli.report import quality_text
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.planning.fit import Plan
from bimedix_edge.planning.plan import plan_model
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
    """Show the facts of MODEL (a name or a directory)."""
    directory = _store().find(model)
    manifest = read_manifest(directory)
    if as_json:
        click.echo(json.dumps(asdict(manifest), ensure_ascii=False, indent=2))
        return
    decoder, vision = manifest.decoder, manifest.vision
    plan, fault = _plan(directory, manifest)
    rows = {
        "name": manifest.name,
        "directory": str(directory),
        "decoder": f"{decoder.file_type}, {decoder.n_layer} layers, width {decoder.n_embd}, "
        f"{decoder.n_head}/{decoder.n_head_kv} heads, {decoder.n_vocab} tokens",
        "vision": f"{manifest.preprocessing.image_size_px} px, {vision.n_tokens} tokens per image, {vision.weights}",
        "plan": fault if plan is None else plan.line,
        "source": ", ".join(f"{key} {value[:64]}" for key, value in manifest.source.items()),
        "licence": manifest.licence,
        "notice": manifest.notice,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows.items():
        table.add_row(key, value)
    plain_console().print(table)
    if plan is not None:
        plain_console().print(plan_table(plan))
    if manifest.quality.types:
        click.echo(quality_text(manifest.quality))


def _plan(directory: Path, manifest: Manifest) -> tuple[Plan | None, str]:
    """Return the plan for this machine, or why there is none; the other facts are shown in either case."""
    try:
        return plan_model(directory, manifest, load_settings()), ""
    except (HardwareError, UsageError) as error:
        return None, str(error)


@models.command()
@click.argument("model")
def verify(model: str) -> None:
    """Check every byte of MODEL (a name or a directory) against its manifest."""
    directory = _store().find(model)
    manifest = read_manifest(directory)
    total = sum(entry.size_bytes for entry in manifest.files.values())
    with work_progress(plain_console(stderr=True), "hashing", total) as advance:
        verify_bundle(directory, advance)
    click.echo(f"{manifest.name}: {len(manifest.files)} files, {total} bytes, identical to the manifest")


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
            raise UsageError(f"There is no terminal to confirm the removal of {what}. Add --yes.")
        if not click.confirm(f"Remove {what}?", err=True):
            raise UsageError(f"The removal of {bundle.name} was not confirmed. Nothing was removed.")
    store.remove(bundle)
    click.echo(f"removed {what}")


def _store() -> Store:
    settings = load_settings()
    return Store(settings.store_dir, settings.cache_dir)
