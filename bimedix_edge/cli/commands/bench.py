"""`bimedix-edge bench`: measures the speed of this machine, even before a model is downloaded."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from rich.console import Console

from bimedix_edge.bench.benchmark import Benchmark, BenchOptions, measure
from bimedix_edge.bench.workloads import N_CTX, N_SEQ_MAX, Subject, Weights
from bimedix_edge.cli.bars import StageBars, StepBar
from bimedix_edge.cli.bench_chart import chart_png, require_matplotlib
from bimedix_edge.cli.bench_report import About, as_json_object, print_tables
from bimedix_edge.cli.opening import open_model
from bimedix_edge.cli.options import placement_options
from bimedix_edge.cli.terminal import cancel_on_interrupt, plain_console
from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.synthetic.config import SHAPES
from bimedix_edge.converters.synthetic.decoder import random_decoder_bytes, write_random_decoder
from bimedix_edge.decoder.decoder import Aborted
from bimedix_edge.decoder.gguf_header import read_header
from bimedix_edge.decoder.kernels import OFF
from bimedix_edge.decoder.placement import Placement
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.hardware.machine import inspect_machine
from bimedix_edge.planning.fit import Plan, VisionFacts
from bimedix_edge.planning.plan import placement_request, plan_decoder, vision_facts
from bimedix_edge.settings import Settings, load_settings
from bimedix_edge.staging import disk_errors, exclusive, write_file
from bimedix_edge.vision.encoder import encoder_kernels
from bimedix_edge.vision.providers import encoder_device

__all__ = ["bench"]

# a slice of the 70B has two layers, and the speed of no model
_SHAPES = tuple(name for name in SHAPES if name != "70b-slice")
_DEFAULT_TYPE = "Q4_K_M"
_RANDOM_NOTICE = "The weights are random: this measures speed, and there are no answers."
# for the vocabulary, and for other programs that write to the disk
_ROOM_BYTES = 100_000_000


@click.command()
@click.option("-m", "--model", metavar="NAME|DIR", help="An installed model's name, or a bundle's directory.")
@click.option("--shape", metavar="SHAPE", help="Measure random weights in the shape 8b or 1b instead; no images.")
@click.option(
    "-t", "--type", "file_type", metavar="TYPE", help=f"Type of the random weights.  [default: {_DEFAULT_TYPE}]"
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Results are the medians of all rounds.",
)
@click.option("--threads", type=int, metavar="N", help="Threads of the matmuls.  [default: one a core]")
@click.option("--kernels", metavar="NAME", help="Kernels to compare with off: auto, avx2, ...  [default: auto]")
@click.option("--vision-device", metavar="NAME", help="Encoder's device: auto, cpu, cuda or coreml.  [default: auto]")
@placement_options
@click.option("--only", multiple=True, metavar="TEXT", help="Measure only work with TEXT in its name; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw a chart, too; needs the extra `plot`."
)
def bench(rounds: int, only: tuple[str, ...], as_json: bool, plot: Path | None, **flags: Any) -> None:
    """Measure how fast this machine is, with and without the fused kernels.

    It measures an installed model (--model), or random weights in a model's shape (--shape). Random weights are written
    to the cache directory and removed afterwards: 5 GB for the 8b.
    """
    shape, file_type = flags.pop("shape"), flags.pop("file_type")
    settings = load_settings(flags)
    _check_usage(settings, shape, file_type, model=flags["model"])
    _check_plot(plot)
    console = plain_console(stderr=True)
    with contextlib.ExitStack() as stack:
        if shape is None:
            about, subject = _installed(settings, console, quiet=as_json)
        else:
            about, subject = stack.enter_context(_random(settings, console, shape, file_type or _DEFAULT_TYPE))
        plan = _plan(settings, subject)
        if not as_json:
            console.print(plan.line)
        benchmark = _measure(console, subject, _options(settings, rounds, only, plan.placement))
    if plot is not None:
        write_file(plot, chart_png(about, benchmark), mode=0o644)
    if as_json:
        click.echo(json.dumps(as_json_object(about, benchmark), ensure_ascii=False, indent=2))
    else:
        print_tables(plain_console(), about, benchmark)


def _check_usage(settings: Settings, shape: str | None, file_type: str | None, *, model: str | None) -> None:
    if shape is not None and model is not None:
        raise UsageError("--model and --shape exclude each other. Choose one.")
    if shape is None and settings.model is None:
        raise UsageError("Neither --model nor --shape is given. Choose one; --shape 8b needs no model.")
    if shape is None and file_type is not None:
        raise UsageError("--type works only with --shape: an installed model has its type. Leave --type out.")
    if settings.kernels == OFF:
        raise UsageError("--kernels off leaves nothing to compare: off is always measured. Choose auto.")


def _plan(settings: Settings, subject: Subject) -> Plan:
    """Plan the placement for the benchmark's own context."""
    wanted = replace(placement_request(settings), ctx_size=N_CTX, n_seq_max=N_SEQ_MAX, long_context=True)
    vision = VisionFacts(0)
    if (bundle := subject.bundle) is not None:
        device = encoder_device(settings.vision_device, bundle.manifest.vision)
        ours = encoder_kernels(settings.kernels, bundle.manifest.vision).name is not None
        vision = vision_facts(bundle.manifest, device, kernels=ours)
    return plan_decoder(subject.path, subject.spec, wanted, vision, kernels=settings.kernels)


def _options(settings: Settings, rounds: int, only: tuple[str, ...], placement: Placement) -> BenchOptions:
    n_threads = settings.threads or inspect_machine().n_cores
    return BenchOptions(rounds, n_threads, settings.kernels, only, placement, settings.vision_device)


def _measure(console: Console, subject: Subject, options: BenchOptions) -> Benchmark:
    try:
        with StepBar(console) as bar, cancel_on_interrupt() as cancel:
            return measure(subject, options, cancel, bar.show)
    except Aborted as error:
        raise KeyboardInterrupt from error


def _check_plot(plot: Path | None) -> None:
    """Refuse a chart that could not be drawn or written, before the measurements take their minutes."""
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        raise UsageError(f"The chart is a PNG, and {plot.name!r} does not end in .png. Choose another file name.")
    if plot.is_dir() or not os.access(plot.parent, os.W_OK):
        raise UsageError(f"{plot} cannot be written. Choose another place.")
    require_matplotlib()


def _installed(settings: Settings, console: Console, *, quiet: bool) -> tuple[About, Subject]:
    bundle = open_model(settings, console, quiet=quiet)
    manifest, path = bundle.manifest, bundle.path("decoder")
    weights = _weights(path)
    about = About(manifest.name, None, manifest.decoder.file_type, weights.file_bytes, manifest.notice)
    return about, Subject(path, manifest.decoder, weights, bundle)


@contextlib.contextmanager
def _random(settings: Settings, console: Console, shape: str, file_type: str) -> Iterator[tuple[About, Subject]]:
    """Write a decoder with random weights; it is removed after the block."""
    if shape not in _SHAPES:
        raise UsageError(f"There is no shape {shape[:40]!r}. Choose one of {', '.join(_SHAPES)}.")
    kind = FILE_TYPES.get(file_type.upper())
    if kind is None:
        raise UsageError(f"There is no type {file_type[:40]!r}. Choose one of {', '.join(FILE_TYPES)}.")
    with _temporary_folder(settings.cache_dir / "bench") as folder:
        path = folder / "decoder.gguf"
        _check_room(folder, random_decoder_bytes(shape, kind))
        with disk_errors(path), StageBars(console) as bars:
            spec = write_random_decoder(path, shape, kind, lambda done, total: bars.show("weights", done, total))
            with path.open("rb+") as file:
                # the system must not write to the disk during the measurements
                os.fsync(file.fileno())
        weights = _weights(path)
        about = About(f"random weights, {shape}", shape, kind.name, weights.file_bytes, _RANDOM_NOTICE)
        yield about, Subject(path, spec, weights)


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that is removed after the block, or by the next benchmark if this process is killed."""
    with contextlib.ExitStack() as stack:
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder))
            if folder.exists():
                shutil.rmtree(folder)
        try:
            with disk_errors(folder):
                folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _ROOM_BYTES:
        raise HardwareError(
            f"Random weights need {(n_bytes + _ROOM_BYTES) / 1e9:.1f} GB in {folder.parent}, and {free / 1e9:.1f} GB "
            "are free. Free some space, or set BIMEDIX_EDGE_CACHE_DIR to another place."
        )


def _weights(path: Path) -> Weights:
    """Return the sizes in a decoder's file, which was verified or written here."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tensors = read_header(memoryview(data)).tensors
    looked_up, last = "token_embd.weight", "output.weight"
    if last not in tensors:
        looked_up, last = "", looked_up
    read = n_token = n_last = 0
    for name, tensor in tensors.items():
        if name == looked_up:
            continue
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        read += tensor.n_values // per_block * block_bytes
        if name == last:
            n_last += tensor.n_values
        elif len(tensor.dims) > 1:
            n_token += tensor.n_values
    return Weights(path.stat().st_size, read, n_token, n_last, _is_int8(tensors["blk.0.ffn_up.weight"].kind))


def _is_int8(kind: int) -> bool:
    return GGML_QUANT_SIZES[GGMLQuantizationType(kind)][0] > 1
