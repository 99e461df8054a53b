"""The plan for a model as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bimedix_edge.bundle import read_manifest
from bimedix_edge.cli.opening import model_directory, show_plan
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.imaging.words import Language
from bimedix_edge.planning.fit import Plan
from bimedix_edge.planning.plan import plan_model
from bimedix_edge.settings import Settings

__all__ = ["plan_json", "plan_table", "show_dry_run"]

_HOST = {
    "weights": "weights",
    "repacked": "weights, repacked by llama.cpp",
    "kv": "context",
    "compute": "results of a batch",
    "vision": "image encoder",
    "process": "the program itself",
}


def show_dry_run(settings: Settings, console: Console, *, as_json: bool = False, language: Language = "en") -> None:
    """Print the plan of the model that `open_runtime` would open, without loading or hashing it.

    Args:
        settings, console: See `opening.open_runtime`.
        as_json: Whether to print JSON instead of a table.
        language: Language of warnings.
    """
    directory = model_directory(settings, console, quiet=as_json)
    plan = plan_model(directory, read_manifest(directory), settings)
    if as_json:
        click.echo(json.dumps(plan_json(plan), ensure_ascii=False, indent=2))
        return
    show_plan(plan, plain_console(), settings, language)
    plain_console().print(plan_table(plan))


def plan_table(plan: Plan) -> Table:
    """Return a table of the memory that the plan takes, by place."""
    table = Table("memory", "MB", "where", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, n_bytes in asdict(plan.host).items():
        if n_bytes:
            table.add_row(_HOST[name], _megabytes(n_bytes), "machine")
    table.add_row("total", _megabytes(plan.host.total), "machine")
    for use in plan.devices:
        what = f"{use.n_layers} layers with their context" if use.n_layers else "image encoder"
        table.add_row(what, _megabytes(use.need_bytes), f"{use.name}, {_megabytes(use.free_bytes)} MB free")
    return table


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "line": plan.line,
        "speed": plan.speed,
        "ctx_size": plan.load.n_ctx,
        "batch": plan.load.n_batch,
        "gpu_layers": plan.placement.n_gpu_layers,
        "kv_type": plan.placement.kv_type,
        "kv_on_gpu": plan.placement.kv_on_gpu,
        "host_bytes": {**asdict(plan.host), "total": plan.host.total},
        "devices": [asdict(use) for use in plan.devices],
        "warnings": [warning.report() for warning in plan.warnings],
    }


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f}"
