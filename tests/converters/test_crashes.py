"""Kills, a full disk, failing writes: no file gets its final name, and the next run ends in the same bytes.

A sample by default; all of it with `pytest -m slow tests/converters/test_crashes.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_checkpoint import Form, Shape, make_checkpoint

from bimedix_edge.store import demo_checkpoint

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("disk") / "failing_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_disk.c", "-ldl"], check=True)
    return library


def run(disk: Path, checkpoint: Path, work: Path, *arguments: object) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(disk)}
    # threads of a linear algebra library would not survive the forks
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    work.mkdir(exist_ok=True)
    command = [sys.executable, HERE / "crashes.py", disk, checkpoint, work, *arguments]
    result = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(cases: list[dict[str, Any]], outcomes: set[int]) -> None:
    for case in cases:
        assert case["outcome"] in outcomes, case
        assert case["whole_or_none"], case
        assert len([name for name in case["left"] if name.endswith(".part")]) <= 1, case
        assert case.get("resumed", 0) == 0, case
        assert case["same"], case
        assert case["clean"], case


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("source") / "tiny", shape=Shape(n_layer=1, n_ff=256), form=Form(n_shards=2)
    )


@pytest.fixture(scope="module")
def whole(disk: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(disk, source, tmp_path_factory.mktemp("whole"), "count")[0]


def test_writes_that_fail(disk: Path, source: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    numbers = [1, 2, 3, 5, whole["calls"] // 2, whole["calls"] - 8, whole["calls"] - 1]
    check(run(disk, source, tmp_path / "work", "write", *numbers), {0, 2})


def test_a_disk_that_fills_up(disk: Path, source: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    sizes = [0, 100, *(whole["bytes"] * k // 4 for k in (1, 2, 3)), whole["bytes"] - 10]
    check(run(disk, source, tmp_path / "work", "full", *sizes), {5})


def test_kills(disk: Path, source: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    check(run(disk, source, tmp_path / "work", "kill", 1, 5), {-9, 0})
    check(run(disk, source, tmp_path / "work2", "die", 4, whole["calls"] // 2), {-9})
    # the disk decides how many lines of the journal share a write, so a run may end before its last writes
    check(run(disk, source, tmp_path / "work3", "die", whole["calls"] - 2), {-9, 0})


@pytest.fixture(scope="module")
def demo(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(disk, demo_checkpoint(), tmp_path_factory.mktemp("demo"), "count")[0]


@pytest.mark.slow
def test_200_kills(disk: Path, tmp_path: Path) -> None:
    cases = run(disk, demo_checkpoint(), tmp_path / "work", "kill", 0, 200)
    check_all(cases, {-9, 0})
    assert sum(case["outcome"] == -9 for case in cases) == 200


@pytest.mark.slow
def test_50_sizes(disk: Path, demo: dict[str, Any], tmp_path: Path) -> None:
    sizes = [demo["bytes"] * k // 50 for k in range(50)]
    check_all(run(disk, demo_checkpoint(), tmp_path / "work", "full", *sizes), {5})


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["write", "die"])
def test_every_write(mode: str, disk: Path, demo: dict[str, Any], tmp_path: Path) -> None:
    numbers = range(1, int(demo["calls"]) + 1)
    check_all(run(disk, demo_checkpoint(), tmp_path / "work", mode, *numbers), {0, 2, -9})


def check_all(cases: list[dict[str, Any]], outcomes: set[int]) -> None:
    failed = [case for case in cases if case["outcome"]]
    went_on = [case for case in failed if case["kept_bytes"]]
    print(f"\n{len(cases)} cases, {len(failed)} failed, {len(went_on)} of these left something to go on with")
    check(cases, outcomes)
