"""`bimedix-edge doctor`: the state of this machine, and whether chat would run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.table import Column, Table

from bimedix_edge.cli.findings import Finding, attempt, engine_findings, machine_findings, network_finding
from bimedix_edge.cli.findings_model import cache_findings, codec_findings, model_findings, store_findings
from bimedix_edge.cli.terminal import AnswerPrinter, echo, plain_console, reorders
from bimedix_edge.settings import Settings, load_settings, terminal_reorders

__all__ = ["doctor"]

# has letters that join, digits and Latin letters, and is longer than a narrow line
_BIDI_SAMPLE = "صورة الصدر CT رقم 12: لا توجد عقيدة رئوية."


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify", is_flag=True, help="Also read every byte of large models.")
@click.option("-m", "--model", metavar="NAME|DIR", help="The model to check.")
def doctor(as_json: bool, verify: bool, model: str | None) -> int:
    """Check this machine, and whether chat would run; the exit code is 0 if it would."""
    settings = load_settings({"model": model})
    findings = [
        *machine_findings(),
        *engine_findings(settings),
        *attempt("DICOM codecs", codec_findings),
        *attempt("model", lambda: model_findings(settings, verify=verify)),
        *attempt("store", lambda: store_findings(settings, verify=verify)),
        *attempt("image cache", lambda: cache_findings(settings)),
        _terminal(settings),
        network_finding(),  # last, so that it sees the sockets of the others
    ]
    exit_code = max(finding.exit_code for finding in findings)
    if as_json:
        rows = [_as_row(finding) for finding in findings]
        click.echo(json.dumps({"ok": exit_code == 0, "findings": rows}, ensure_ascii=False, indent=2))
    else:
        _print(findings, settings, exit_code)
    return exit_code


def _terminal(settings: Settings) -> Finding:
    itself = terminal_reorders()
    how = "reorders Arabic itself" if itself else "is not known to reorder Arabic, so chat does"
    data = {"reorders": itself, "bidi": settings.bidi, "encoding": sys.stdout.encoding, "sample": _BIDI_SAMPLE}
    return Finding("terminal", f"{how}; bidi {settings.bidi}; output encoding {sys.stdout.encoding}", data=data)


def _as_row(finding: Finding) -> dict[str, Any]:
    facts = {"subject": finding.subject, "found": finding.found, "ok": finding.exit_code == 0}
    return {**facts, "remedy": finding.remedy, "data": finding.data}


def _print(findings: Sequence[Finding], settings: Settings, exit_code: int) -> None:
    table = Table("", "", Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = "✗" if finding.exit_code else "·" if finding.remedy else "✓"
        table.add_row(mark, finding.subject, finding.found)
    plain_console().print(table)
    for finding in findings:
        if finding.remedy is not None:
            # not wrapped: it may be a command to copy
            click.echo(f"\n{finding.subject}: {finding.remedy}")
    echo("\nbidi test: the next line is Arabic; it should begin at the right, with its letters joined:")
    printer = AnswerPrinter(sys.stdout, reorder=reorders(settings, sys.stdout))
    printer.write(_BIDI_SAMPLE)
    printer.finish()
    echo("\nchat would run" if exit_code == 0 else "\nchat would not run; see the lines marked ✗")
