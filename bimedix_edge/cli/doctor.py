"""`bimedix-edge doctor`: what is here, and whether chat would run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from rich.table import Table

from bimedix_edge.bidi import shape
from bimedix_edge.bundle import verify_bundle
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.devices import inspect_machine
from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.image_cache import cache_usage
from bimedix_edge.settings import OFF, Settings, load_settings, terminal_reorders
from bimedix_edge.store import Store

__all__ = ["doctor"]

_BIDI_SAMPLE = "صورة الصدر CT"


@dataclass(frozen=True)
class _Finding:
    """One line: what was looked at, what was found, and the exit code if chat would not run because of it."""

    subject: str
    found: str
    exit_code: int = 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-m", "--model", metavar="NAME|DIR", help="The model to look at.")
def doctor(as_json: bool, model: str | None) -> int:
    """Say what is here, and whether chat would run: the exit code is 0 if it would."""
    settings = load_settings({"model": model})
    computed = [_attempt("kernels", lambda: _kernels(settings)), _attempt("model", lambda: _model(settings))]
    computed.append(_attempt("image cache", lambda: _image_cache(settings)))
    findings = [*_machine(), *_libraries(settings), *computed, *_terminal()]
    exit_code = max(finding.exit_code for finding in findings)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"subject": finding.subject, "found": finding.found, "ok": finding.exit_code == 0} for finding in findings
        ]
        click.echo(json.dumps({"ok": exit_code == 0, "findings": rows}, ensure_ascii=False, indent=2))
        return exit_code
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row("✗" if finding.exit_code else "✓", finding.subject, finding.found)
    plain_console().print(table)
    click.echo("chat would run" if exit_code == 0 else "chat would not run; see the lines marked ✗")
    return exit_code


def _machine() -> list[_Finding]:
    machine = inspect_machine()
    memory = "unknown"
    if machine.memory_bytes is not None:
        memory = f"{machine.memory_bytes / 1e9:.1f} GB"
        if machine.available_bytes is not None:
            memory += f", {machine.available_bytes / 1e9:.1f} GB available"
    return [
        _Finding("machine", f"{machine.system}, {machine.cpu}, {machine.n_cores} cores"),
        _Finding("memory", memory),
    ]


def _libraries(settings: Settings) -> list[_Finding]:
    version = importlib.metadata.version("bimedix-edge")
    return [
        _Finding("bimedix-edge", f"{version} on Python {platform.python_version()}"),
        _attempt("llama-cpp-python", _llama_cpp),
        _attempt("onnxruntime", lambda: _onnxruntime(settings)),
    ]


def _attempt(subject: str, look: Callable[[], str]) -> _Finding:
    try:
        return _Finding(subject, look())
    except BimedixEdgeError as error:
        return _Finding(subject, str(error), error.exit_code)


def _llama_cpp() -> str:
    # imported here: a library that does not load is a finding, not the end of the doctor
    from bimedix_edge import decoder

    decoder.check_version()
    amx = "; its own use of AMX is switched off" if decoder.built_for_amx() else ""
    return f"{decoder.library_version()}; {decoder.system_info().strip()}{amx}"


def _kernels(settings: Settings) -> str:
    from bimedix_edge import decoder

    found = decoder.open_kernels(settings.kernels)
    if found.name is None:
        return f"llama.cpp's own: {found.reason}"
    return f"{found.name}, {found.reason}; built for this llama-cpp-python, self-test passed"


def _onnxruntime(settings: Settings) -> str:
    from bimedix_edge import vision

    here = ", ".join(["cpu", *vision.devices_here()])
    return f"{vision.library_version()}; vision_device {settings.vision_device}, here: {here}; telemetry off"


def _image_cache(settings: Settings) -> str:
    usage = cache_usage(settings.image_cache_dir)
    state = "off" if settings.image_cache == OFF else f"on, up to {settings.image_cache}"
    return f"{state}; {usage.n_images} images, {usage.size_bytes / 1e6:.1f} MB in {settings.image_cache_dir}"


def _model(settings: Settings) -> str:
    store = Store(settings.store_dir, settings.cache_dir)
    directory = store.find(settings.model) if settings.model else store.default()
    if store.is_demo(directory) and not directory.is_dir():
        return "none installed; the demo model will be converted on first use"
    manifest = verify_bundle(directory)
    from bimedix_edge.planning import plan_model

    plan = plan_model(directory, manifest, settings)
    return f"{manifest.name}, whole, needs about {plan.host.total / 1e6:.0f} MB; {plan.line}"


def _terminal() -> list[_Finding]:
    encoding = sys.stdout.encoding
    reorders = terminal_reorders()
    how = "reorders Arabic itself" if reorders else "is not known to reorder Arabic, so chat does"
    return [
        _Finding("terminal", f"{how}; output encoding {encoding}"),
        _Finding("bidi test", f"read from the right: {_BIDI_SAMPLE if reorders else shape(_BIDI_SAMPLE, rtl=True)}"),
    ]
