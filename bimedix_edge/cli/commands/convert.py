"""`bimedix-edge convert`: a published checkpoint becomes a bundle."""

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
from bimedix_edge.converters.convert import dry_run as forecast_conversion
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
class _Conversion:
    """What the user asks for, besides the options that change the weights."""

    checkpoint: Path | None
    demo: bool
    file_type: str
    name: str | None
    output: Path | None
    bos: int | None
    aspect: Literal["pad", "crop"] | None
    vision_tower: Path | None
    force: bool
    fresh: bool

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: They do.
        """
        if (self.checkpoint is None) != self.demo:
            raise UsageError(
                "Give either a checkpoint directory or --demo. `bimedix-edge convert --help` has examples."
            )
        if self.file_type.upper() not in FILE_TYPES:
            raise UsageError(f"There is no type {self.file_type!r}. Choose one of {', '.join(FILE_TYPES)}.")
        if self.output is not None and self.name is not None:
            raise UsageError(
                "--name and --output exclude each other: an output directory needs no name. Leave one out."
            )

    @property
    def source(self) -> Path:
        return demo_checkpoint() if self.checkpoint is None else self.checkpoint

    @property
    def label(self) -> str:
        name = self.name or (DEMO if self.demo else self.source.resolve().name.lower())
        return f"{name}:{self.file_type.lower()}"

    def options(self, weights: WeightOptions) -> ConvertOptions:
        return ConvertOptions(
            file_type=self.file_type.upper(),
            name=self.label,
            bos=self.bos,
            aspect=self.aspect,
            vision_tower=self.vision_tower,
            lora=weights.lora,
            recipe=weights.recipe,
            imatrix=weights.imatrix,
            zero_nonfinite=weights.zero_nonfinite,
            vision=weights.vision,
            strict=weights.strict,
            replace=self.force,
            fresh=self.fresh,
        )


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
    help=f"Type of the decoder's weights: {', '.join(FILE_TYPES)}.",
)
@click.option("-n", "--name", metavar="NAME", help="Install as NAME:TYPE.  [default: the checkpoint directory's name]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write here, not to the store.")
@click.option("--bos", type=click.IntRange(1, 2), help="Number of <|begin_of_text|> at the start of a prompt.")
@click.option("--aspect", type=click.Choice(["pad", "crop"]), help="How a picture becomes square.  [default: pad]")
@click.option(
    "--vision-tower", type=click.Path(path_type=Path), metavar="DIR", help="CLIP, if the checkpoint lacks it."
)
@weight_options
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--fresh", is_flag=True, help="Start again, even if an interrupted conversion could continue.")
@click.option("--dry-run", is_flag=True, help="Check everything and forecast the conversion; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object.")
@pack("wanted", _Conversion)
def convert(wanted: _Conversion, weights: WeightOptions, dry_run: bool, as_json: bool) -> None:
    """Turn CHECKPOINT, a directory as published, into a bundle that ask and chat can use."""
    wanted.check()
    weights.check()
    settings = load_settings()
    target = wanted.output or Store(settings.store_dir, settings.cache_dir).target(wanted.label)
    options = wanted.options(weights)
    if dry_run:
        _show_forecast(forecast_conversion(wanted.source, target, options), target, as_json=as_json)
        return
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(StageBars(plain_console(stderr=True)))
        options = stack.enter_context(_calibrated(wanted.source, options, weights, bars))
        options = replace(options, pictures=_sample_pictures(wanted.source) if wanted.demo else ())
        manifest = convert_checkpoint(wanted.source, target, options, bars.show)
    report(manifest, target)


def _show_forecast(forecast: Forecast, target: Path, *, as_json: bool) -> None:
    click.echo(json.dumps(asdict(forecast), indent=2) if as_json else _forecast_text(forecast, target))
    if not forecast.fits:
        raise HardwareError(
            f"There is too little room for {target}: see `free` above. Free disk space, or choose --output."
        )


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


def _forecast_text(forecast: Forecast, target: Path) -> str:
    lines = [f"{'type':8} {'tensors':>7} {'weights':>15} {'MB':>9} {'seconds':>8}"]
    for row in forecast.rows:
        numbers = f"{row.n_tensors:7d} {row.n_weights:15,d} {row.size_bytes / 1e6:9.1f} {row.seconds:8.1f}"
        lines.append(f"{row.kind:8} {numbers}")
    needed = forecast.decoder_bytes + forecast.vision_bytes
    verdict = "enough" if forecast.fits else "too little"
    return "\n".join(
        [
            *lines,
            "",
            f"reads    {forecast.source_bytes / 1e6:,.1f} MB",
            f"writes   {needed / 1e6:,.1f} MB to {target}: decoder {forecast.decoder_bytes / 1e6:,.1f}, "
            f"vision {forecast.vision_bytes / 1e6:,.1f}",
            f"free     {forecast.free_bytes / 1e6:,.1f} MB, {verdict}",
            f"memory   about {forecast.memory_bytes / 1e6:,.0f} MB",
            f"time     {forecast.seconds:,.0f} s of computing or more, as the disk allows",
        ]
    )
