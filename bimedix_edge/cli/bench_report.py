"""A benchmark as tables and as a JSON object."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bimedix_edge.bench.benchmark import ON, Benchmark, Measurement
from bimedix_edge.cli.terminal import echo
from bimedix_edge.decoder.kernels import OFF
from bimedix_edge.decoder.llama import built_for_amx, compute_devices
from bimedix_edge.hardware.machine import inspect_machine

__all__ = ["About", "as_json_object", "on_name", "print_tables", "speed_text"]

_NONE = "–"


@dataclass(frozen=True)
class About:
    """The model that was measured, as people name it.

    Attributes:
        name: Name of the model, or of its random weights.
        shape: Shape of random weights; None for a model.
        file_type: Type of the decoder's weights.
        file_bytes: Size of the decoder's file.
        notice: Notice that every output carries.
    """

    name: str
    shape: str | None
    file_type: str
    file_bytes: int
    notice: str


def on_name(benchmark: Benchmark) -> str:
    """Return the name of the kernels that `on` stands for, or why there are none."""
    return benchmark.kernels.name or f"none ({benchmark.kernels.reason})"


def speed_text(measurement: Measurement, side: str) -> str:
    """Return tokens per second, or the time for work on images, with its unit."""
    rate, seconds = measurement.rate(side), measurement.median_s(side)
    if seconds is None:
        return _NONE
    if rate is not None:
        return f"{rate:,.0f} t/s" if rate >= 1000 else f"{rate:.1f} t/s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def print_tables(console: Console, about: About, benchmark: Benchmark) -> None:
    """Print the model, the machine and its ceilings, and a table of the measurements."""
    machine = inspect_machine()
    turns = "on and off in turn for each measurement" if benchmark.both_loaded else "on after off in each round"
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_row("model", f"{about.name}, {about.file_type}, {about.file_bytes / 1e9:.2f} GB")
    head.add_row("machine", f"{machine.cpu}, {machine.system}, threads: {benchmark.n_threads}")
    without = ", without its AMX and its repacked weights" if built_for_amx() else ""
    head.add_row("kernels", f"on is {on_name(benchmark)}, off is llama.cpp's own{without}")
    head.add_row("rounds", f"{benchmark.rounds}, {turns}; medians")
    loading = ", ".join(f"{side} {seconds:.1f} s" for side, seconds in benchmark.load_s.items())
    head.add_row("loading", loading)
    head.add_row("decoder on", _place(benchmark))
    if benchmark.vision_device is not None:
        head.add_row("encoder on", benchmark.vision_device)
    if benchmark.placement.n_gpu_layers:
        card = benchmark.card_bytes_per_s
        text = "not measured" if card is None else f"{card / 1e9:.1f} GB/s read and written"
        head.add_row("ceiling", f"card memory: {text}")
    if benchmark.read_bytes_per_s is not None:
        head.add_row("ceiling", f"memory: {benchmark.read_bytes_per_s / 1e9:.1f} GB/s read")
    if benchmark.int8_ops_per_s is not None:
        head.add_row("ceiling", f"int8: {benchmark.int8_ops_per_s / 1e9:,.0f} GOPS of {benchmark.kernels.name}")
    console.print(head)
    console.print()
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("measured", min_width=24)
    for title in ("off", "on", "on/off", "off reaches", "on reaches"):
        table.add_column(title, justify="right")
    for found in benchmark.measurements:
        ratio = _NONE if found.ratio is None else f"{found.ratio:.2f}×"
        reached = [_share_text(benchmark, found, side) for side in (OFF, ON)]
        table.add_row(found.workload.name, speed_text(found, OFF), speed_text(found, ON), ratio, *reached)
    console.print(table)
    echo('\nt/s: tokens per second of all sequences. "Reaches": share of the ceiling.')
    echo(f"\n{about.notice}")


def _place(benchmark: Benchmark) -> str:
    placement = benchmark.placement
    if placement.n_gpu_layers == 0:
        return "the CPU"
    descriptions = {device.name: device.description for device in compute_devices()}
    parts = [
        f"{n_layers} layers on {name} ({descriptions[name]})"
        for name, n_layers in zip(placement.devices, placement.split, strict=True)
    ]
    return f"{', '.join(parts)}; keys and values in {placement.kv_type}"


def as_json_object(about: About, benchmark: Benchmark) -> dict[str, Any]:
    """Return all measurements as an object for `json.dumps`."""
    machine = inspect_machine()
    return {
        "model": {
            "name": about.name,
            "shape": about.shape,
            "random": about.shape is not None,
            "type": about.file_type,
            "decoder_bytes": about.file_bytes,
        },
        "machine": {
            "system": machine.system,
            "cpu": machine.cpu,
            "cores": machine.n_cores,
            "memory_bytes": machine.memory_bytes,
        },
        "threads": benchmark.n_threads,
        "placement": asdict(benchmark.placement),
        "vision_device": benchmark.vision_device,
        "kernels": {"on": benchmark.kernels.name, "reason": benchmark.kernels.reason},
        "rounds": benchmark.rounds,
        "both_loaded": benchmark.both_loaded,
        "load_ms": {side: _rounded(seconds, 1e3) for side, seconds in benchmark.load_s.items()},
        "ceilings": {
            "read_gb_per_s": _rounded(benchmark.read_bytes_per_s, 1e-9),
            "int8_gops": _rounded(benchmark.int8_ops_per_s, 1e-9),
            "card_gb_per_s": _rounded(benchmark.card_bytes_per_s, 1e-9),
        },
        "measurements": [_measurement(benchmark, found) for found in benchmark.measurements],
        "notice": about.notice,
    }


def _measurement(benchmark: Benchmark, found: Measurement) -> dict[str, Any]:
    sides = {
        side: {
            "rounds_ms": [_rounded(seconds, 1e3) for seconds in found.seconds[side]],
            "median_ms": _rounded(found.median_s(side), 1e3),
            "tokens_per_s": _rounded(found.rate(side), 1),
            "share_of_ceiling": _rounded(benchmark.share(found, side), 1),
        }
        for side in (OFF, ON)
    }
    work = found.workload
    return {
        "name": work.name,
        "kind": work.kind,
        "tokens": work.n_tokens,
        "ceiling": benchmark.ceiling_of(found),
        **sides,
        "ratio": _rounded(found.ratio, 1),
    }


def _share_text(benchmark: Benchmark, found: Measurement, side: str) -> str:
    share = benchmark.share(found, side)
    unit = {"read": "memory", "card": "card", "int8": "int8", None: ""}[benchmark.ceiling_of(found)]
    return _NONE if share is None else f"{share:.0%} {unit}"


def _rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 4)
