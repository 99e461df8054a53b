"""The command line's manual is what the program is: help texts, settings, JSON fields, exit codes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from docs.documents import ROOT, table_rows
from docs.make_help import MANUAL, help_texts, manual

import bimedix_edge
from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.server.api.openapi import document
from bimedix_edge.server.front.limits import Limits
from bimedix_edge.settings import Settings

TEXT = MANUAL.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "text"), [pytest.param(*pair, id=pair[0]) for pair in help_texts()])
def test_the_manual_has_the_help_text_of_each_command(name: str, text: str) -> None:
    shown = TEXT.partition(f"### {name}\n\n```text\n")[2].partition("\n```\n")[0]
    assert shown == text.rstrip(), "run: python tests/docs/make_help.py"


def test_the_manual_has_no_help_text_of_a_command_that_is_gone() -> None:
    assert manual() == TEXT, "run: python tests/docs/make_help.py"


def test_the_manual_has_every_setting_with_its_default() -> None:
    rows = table_rows(MANUAL, "setting")
    assert list(rows) == [item.name for item in fields(Settings)]
    words = {"model": "none", "device": "all", "threads": "one per core", "seed": "new"}
    for item in fields(Settings):
        if not isinstance(item.default, Path):
            value = f"{item.default:g}" if item.name == "min_p" else str(item.default)
            assert rows[item.name][0] == words.get(item.name, value)


def test_the_manual_has_every_exit_code() -> None:
    classes = [value for value in vars(bimedix_edge.errors).values() if isinstance(value, type)]
    codes = {value.exit_code for value in classes if issubclass(value, BimedixEdgeError)}
    assert {int(code) for code in table_rows(MANUAL, "code")} == codes | {0, 130}


def test_the_manual_has_every_command_of_a_conversation() -> None:
    from bimedix_edge.cli.commands.chat import HELP

    assert {row.split()[0] for row in table_rows(MANUAL, "command")} == set(
        re.findall(r"^  (/\w+)", HELP, re.MULTILINE)
    )


def test_the_servers_manual_has_every_route_and_the_limits() -> None:
    import json

    path = MANUAL.parents[1] / "server" / "README.md"
    text = path.read_text(encoding="utf-8")
    shown = set(re.findall(r"`(?:GET|POST) (/[^`]*)`", text))
    routes = {re.sub(r"\{.*\}", "NAME", path) for path in json.loads(document())["paths"]}
    assert shown - {"/", "/static/…", "/openapi.json", "/metrics"} == routes - {"/openapi.json", "/metrics"}
    rows = {key: " ".join(value) for key, value in table_rows(path, "what").items()}
    limits, settings = Limits(), Settings()
    assert f"{limits.body_bytes >> 20} MiB and {limits.images} images" in rows["one request"]
    assert f"within {limits.head_s:g} seconds" in rows["headers"]
    assert f"{limits.body_bytes_per_s / 1024:g} KiB/s" in rows["body"]
    assert f"within {limits.body_s:g} seconds" in rows["body"]
    assert f"{limits.requests_per_s:g} a second" in rows["requests of one key"]
    assert f"after {limits.write_s:g} seconds" in rows["a client that stops reading"]
    assert str(limits.connections) in rows["open connections"]
    assert str(settings.parallel) in rows["answers decoded together"]
    assert str(settings.queue) in rows["requests that may wait"]
    assert f"for up to {limits.shutdown_s:g} seconds" in text


def test_the_imaging_manual_has_the_presets() -> None:
    rows = table_rows(MANUAL.parents[1] / "imaging" / "README.md", "preset")
    assert {name: tuple(map(float, cells)) for name, cells in rows.items()} == PRESETS


def test_contributing_draws_the_ten_rows() -> None:
    from test_layers import DOORS, ROWS

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^ ?(\d+)  (.*)$", text, re.MULTILINE)
    assert [int(number) for number, _ in drawn] == list(range(1, len(ROWS) + 1))
    assert [{room.rstrip("/") for room in rooms.split()} for _, rooms in drawn] == ROWS
    for paths in DOORS.values():
        for path in paths:
            assert path.removeprefix("bimedix_edge/") in text
