"""`bimedix-edge convert`: a published checkpoint becomes a bundle."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, cast

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bimedix_edge.cli.bars import StageBars
from bimedix_edge.cli.convert_options import WeightOptions, weight_options
from bimedix_edge.cli.report import report
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.converters.convert import ConvertOptions
from bimedix_edge.converters.convert import convert as convert_checkpoint
from bimedix_edge.converters.convert import dry_run as plan_conversion
from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.job.forecast import Forecast
from bimedix_edge.converters.job.job import open_checkpoint
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.imaging.picture import load_picture
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
@weight_options
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
    weights: WeightOptions,
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
    weights.check()
    source = demo_checkpoint() if checkpoint is None else checkpoint
    settings = load_settings()
    store = Store(settings.store_dir, settings.cache_dir)
    label = f"{name or _default_name(source, demo=demo)}:{file_type.lower()}"
    target = output or store.target(label)
    options = ConvertOptions(
        file_type=file_type.upper(),
        name=label,
        bos=bos,
        aspect=cast("Literal['pad', 'crop'] | None", aspect),
        vision_tower=vision_tower,
        lora=weights.lora,
        recipe=weights.recipe,
        imatrix=weights.imatrix,
        zero_nonfinite=weights.zero_nonfinite,
        vision=weights.vision,
        strict=weights.strict,
        replace=force,
        fresh=fresh,
    )
    if dry_run:
        plan = plan_conversion(source, target, options)
        click.echo(json.dumps(asdict(plan), indent=2) if as_json else _plan_text(plan, target))
        if not plan.fits:
            raise HardwareError(f"Expected room for {target}, but there is too little; see `free` above.")
        return
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(StageBars(plain_console(stderr=True)))
        options = stack.enter_context(_calibrated(source, options, weights, bars))
        options = replace(options, pictures=_sample_pictures(source) if demo else ())
        manifest = convert_checkpoint(source, target, options, bars.show)
    report(manifest, target)


def convert_demo(store: Store, console: Console) -> None:
    """Convert the embedded demo checkpoint into the cache; if another process is at it, wait for that instead."""
    target, name = store.demo_directory(), f"{DEMO}:{DEMO_TYPE.lower()}"
    while not target.is_dir():
        try:
            with StageBars(console) as bars:
                convert_checkpoint(demo_checkpoint(), target, ConvertOptions(file_type=DEMO_TYPE, name=name), bars.show)
        except InUseError:
            time.sleep(_POLL_S)
        except UsageError:
            # finished by another process between our look and our lock
            if not target.is_dir():
                raise


@contextlib.contextmanager
def _calibrated(
    source: Path, options: ConvertOptions, weights: WeightOptions, bars: StageBars
) -> Iterator[ConvertOptions]:
    """Measure an importance matrix first, if a text is given; it is thrown away after the block, unless it is saved."""
    if weights.calibrate is None:
        yield options
        return
    from bimedix_edge.converters.decoder.calibrate import calibrate

    with tempfile.TemporaryDirectory(prefix="bimedix-edge-") as temporary:
        output = weights.save_imatrix or Path(temporary) / "imatrix.gguf"
        calibrate(open_checkpoint(source, options), weights.calibrate, output, bars.show)
        yield replace(options, imatrix=output)


def _sample_pictures(checkpoint: Path) -> list[NDArray[np.uint8]]:
    paths = sorted((checkpoint.parent / "samples").glob("*.png"))
    return [load_picture(path).pixels for path in paths]


def _default_name(source: Path, *, demo: bool) -> str:
    return DEMO if demo else source.resolve().name.lower()


def _plan_text(plan: Forecast, target: Path) -> str:
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
