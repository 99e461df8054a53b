"""`bimedix-edge convert`: turn a published checkpoint into a bundle."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bimedix_edge.cli.bars import StageBars
from bimedix_edge.cli.convert_options import WeightOptions, weight_options
from bimedix_edge.cli.options import pack
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


@dataclass(frozen=True)
class _Source:
    """The checkpoint, and the options for what it does not state."""

    checkpoint: Path | None
    demo: bool
    bos: int | None
    aspect: Literal["pad", "crop"] | None
    vision_tower: Path | None

    def directory(self) -> Path:
        """Return the directory of the checkpoint.

        Raises:
            UsageError: There is none, or --demo is given as well.
        """
        if (self.checkpoint is None) != self.demo:
            raise UsageError(
                "convert needs either the directory of a checkpoint or --demo. See bimedix-edge convert --help."
            )
        return demo_checkpoint() if self.checkpoint is None else self.checkpoint


@dataclass(frozen=True)
class _Target:
    """The options for the bundle and its place."""

    file_type: str
    name: str | None
    output: Path | None
    force: bool
    fresh: bool

    def check(self) -> None:
        """Refuse an unknown type, and options that contradict each other.

        Raises:
            UsageError: They do.
        """
        if self.file_type.upper() not in FILE_TYPES:
            raise UsageError(f"{self.file_type!r} is not a type. Choose one of {', '.join(FILE_TYPES)}.")
        if self.output is not None and self.name is not None:
            raise UsageError(
                "--name and --output exclude each other. Leave --name out: an output directory needs none."
            )


@dataclass(frozen=True)
class _Preview:
    """The values of --dry-run and --json."""

    dry_run: bool
    as_json: bool


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
    help=f"Type of the decoder: {', '.join(FILE_TYPES)}.",
)
@click.option("-n", "--name", metavar="NAME", help="Install as NAME:TYPE.  [default: the checkpoint directory's name]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write to DIR, not to the store.")
@click.option("--bos", type=click.IntRange(1, 2), help="How many <|begin_of_text|> a prompt starts with.")
@click.option("--aspect", type=click.Choice(["pad", "crop"]), help="How a picture becomes square.  [default: pad]")
@click.option(
    "--vision-tower", type=click.Path(path_type=Path), metavar="DIR", help="CLIP, if the checkpoint lacks it."
)
@weight_options
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--fresh", is_flag=True, help="Do not resume an interrupted conversion.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the forecast; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object.")
@pack("source", _Source)
@pack("target", _Target)
@pack("preview", _Preview)
def convert(source: _Source, target: _Target, weights: WeightOptions, preview: _Preview) -> None:
    """Turn CHECKPOINT, a directory as published, into a bundle that ask and chat can use."""
    checkpoint = source.directory()
    target.check()
    weights.check()
    settings = load_settings()
    label = f"{target.name or _default_name(checkpoint, demo=source.demo)}:{target.file_type.lower()}"
    directory = target.output or Store(settings.store_dir, settings.cache_dir).target(label)
    options = ConvertOptions(
        file_type=target.file_type.upper(),
        name=label,
        bos=source.bos,
        aspect=source.aspect,
        vision_tower=source.vision_tower,
        lora=weights.lora,
        recipe=weights.recipe,
        imatrix=weights.imatrix,
        zero_nonfinite=weights.zero_nonfinite,
        vision=weights.vision,
        strict=weights.strict,
        replace=target.force,
        fresh=target.fresh,
    )
    if preview.dry_run:
        _show_forecast(plan_conversion(checkpoint, directory, options), directory, as_json=preview.as_json)
        return
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(StageBars(plain_console(stderr=True)))
        options = stack.enter_context(_calibrated(checkpoint, options, weights, bars))
        options = replace(options, pictures=_sample_pictures(checkpoint) if source.demo else ())
        manifest = convert_checkpoint(checkpoint, directory, options, bars.show)
    report(manifest, directory)


def convert_demo(store: Store, console: Console) -> None:
    """Convert the embedded demo checkpoint into the cache; if another process is converting it, wait for that one."""
    target, name = store.demo_directory(), f"{DEMO}:{DEMO_TYPE.lower()}"
    while not target.is_dir():
        try:
            with StageBars(console) as bars:
                convert_checkpoint(demo_checkpoint(), target, ConvertOptions(file_type=DEMO_TYPE, name=name), bars.show)
        except InUseError:
            time.sleep(_POLL_S)
        except UsageError:
            # another process finished it between our check and our lock
            if not target.is_dir():
                raise


@contextlib.contextmanager
def _calibrated(
    source: Path, options: ConvertOptions, weights: WeightOptions, bars: StageBars
) -> Iterator[ConvertOptions]:
    """Measure an importance matrix first, if a text is given; it is deleted after the block unless it is saved."""
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


def _show_forecast(plan: Forecast, target: Path, *, as_json: bool) -> None:
    """Print what a conversion would do.

    Raises:
        HardwareError: The disk has too little room for it.
    """
    click.echo(json.dumps(asdict(plan), indent=2) if as_json else _forecast_text(plan, target))
    if not plan.fits:
        raise HardwareError(f"There is too little room for {target}. See `free` above.")


def _forecast_text(plan: Forecast, target: Path) -> str:
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
