"""`bimedix-edge convert`: a published checkpoint becomes a bundle."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

import click
from rich.console import Console

from bimedix_edge.bundle import Manifest
from bimedix_edge.cli.bars import StageBars
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.converters.convert import convert as convert_checkpoint
from bimedix_edge.converters.convert import dry_run as plan_conversion
from bimedix_edge.converters.plan import Plan
from bimedix_edge.converters.quantize import FILE_TYPES
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.settings import load_settings
from bimedix_edge.staging import InUseError
from bimedix_edge.store import DEMO, DEMO_TYPE, Store, demo_checkpoint

__all__ = ["convert", "convert_demo"]

_POLL_S = 0.2


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--demo", is_flag=True, help="Convert the embedded demo checkpoint.")
@click.option(
    "-t",
    "--type",
    "file_type",
    default="Q4_K_M",
    show_default=True,
    metavar="TYPE",
    help=f"Of the decoder: {', '.join(FILE_TYPES)}.",
)
@click.option("-n", "--name", metavar="NAME", help="Install as NAME:TYPE.  [default: the checkpoint directory's name]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write here, not to the store.")
@click.option("--bos", type=click.IntRange(1, 2), help="How many <|begin_of_text|> a prompt starts with.")
@click.option("--aspect", type=click.Choice(["pad", "crop"]), help="How a picture becomes square.  [default: pad]")
@click.option("--vision-tower", type=click.Path(path_type=Path), metavar="DIR", help="CLIP, if it is not inside.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--fresh", is_flag=True, help="Begin anew where an interrupted conversion could be continued.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object.")
def convert(
    checkpoint: Path | None,
    demo: bool,
    file_type: str,
    name: str | None,
    output: Path | None,
    bos: int | None,
    aspect: str | None,
    vision_tower: Path | None,
    force: bool,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT, a directory as published, into a bundle that ask and chat can use."""
    if (checkpoint is None) != demo:
        raise UsageError("Expected a checkpoint directory or --demo, one of the two; see bimedix-edge convert --help.")
    if file_type.upper() not in FILE_TYPES:
        raise UsageError(f"Expected a type out of {', '.join(FILE_TYPES)}, but it is {file_type!r}; choose one.")
    if output is not None and name is not None:
        raise UsageError("Expected --name or --output, but both are given; an output directory needs no name.")
    source = demo_checkpoint() if checkpoint is None else checkpoint
    settings = load_settings()
    store = Store(settings.store_dir, settings.cache_dir)
    label = f"{name or _default_name(source, demo=demo)}:{file_type.lower()}"
    target = output or store.target(label)
    square = cast("Literal['pad', 'crop'] | None", aspect)
    if dry_run:
        plan = plan_conversion(source, target, file_type=file_type.upper(), aspect=square, vision_tower=vision_tower)
        click.echo(json.dumps(asdict(plan), indent=2) if as_json else _plan_text(plan, target))
        if not plan.fits:
            raise HardwareError(f"Expected room for {target}, but there is too little; see `free` above.")
        return
    with StageBars(plain_console(stderr=True)) as bars:
        manifest = convert_checkpoint(
            source,
            target,
            file_type=file_type.upper(),
            name=label,
            bos=bos,
            aspect=square,
            vision_tower=vision_tower,
            replace=force,
            fresh=fresh,
            progress=bars.show,
        )
    _report(manifest, target)


def convert_demo(store: Store, console: Console) -> None:
    """Convert the embedded demo checkpoint into the cache; if another process is at it, wait for that instead."""
    target, name = store.demo_directory(), f"{DEMO}:{DEMO_TYPE.lower()}"
    while not target.is_dir():
        try:
            with StageBars(console) as bars:
                convert_checkpoint(demo_checkpoint(), target, file_type=DEMO_TYPE, name=name, progress=bars.show)
        except InUseError:
            time.sleep(_POLL_S)
        except UsageError:
            # finished by another process between our look and our lock
            if not target.is_dir():
                raise


def _default_name(source: Path, *, demo: bool) -> str:
    return DEMO if demo else source.resolve().name.lower()


def _report(manifest: Manifest, target: Path) -> None:
    for role, entry in sorted(manifest.files.items()):
        click.echo(f"{role:8} {entry.path}  {entry.size_bytes / 1e6:.1f} MB  sha256 {entry.sha256}")
    click.echo(f"{manifest.name} is in {target}")
    click.echo(f"\n{manifest.licence} · {manifest.notice}")


def _plan_text(plan: Plan, target: Path) -> str:
    lines = [f"{'type':8} {'tensors':>7} {'weights':>15} {'MB':>9} {'seconds':>8}"]
    for row in plan.rows:
        numbers = f"{row.n_tensors:7d} {row.n_weights:15,d} {row.size_bytes / 1e6:9.1f} {row.seconds:8.1f}"
        lines.append(f"{row.kind:8} {numbers}")
    needed = plan.decoder_bytes + plan.vision_bytes
    verdict = "enough" if plan.fits else "too little"
    return "\n".join(
        [
            *lines,
            "",
            f"reads    {plan.source_bytes / 1e6:,.1f} MB",
            f"writes   {needed / 1e6:,.1f} MB to {target}: decoder {plan.decoder_bytes / 1e6:,.1f}, "
            f"vision {plan.vision_bytes / 1e6:,.1f}",
            f"free     {plan.free_bytes / 1e6:,.1f} MB, {verdict}",
            f"memory   about {plan.memory_bytes / 1e6:,.0f} MB",
            f"time     {plan.seconds:,.0f} s of computing or more, as the disk allows",
        ]
    )
