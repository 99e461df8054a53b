"""Layers on a device of its own beside our kernels: the same answers in every split, and a device that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from native_build import NATIVE, compile_native, with_ggml

_SCRIPT = Path(__file__).parents[1] / "support" / "offload_runs.py"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("native") / "libstand_in.so"
    return compile_native([NATIVE / "stand_in.cpp"], output, "-O1", "-fPIC", "-shared", *with_ggml())


def run(stand_in: Path, bundle: Path, what: object) -> Any:
    command = [sys.executable, str(_SCRIPT), str(stand_in), str(bundle), str(what)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def check(found: list[dict[str, Any]], *, repacked: bool = False) -> None:
    expected = {row["kernels"]: row["answers"] for row in found if row["layers"] == 0}
    for row in found:
        assert row["answers"] == expected[row["kernels"]], (row["kernels"], row["devices"], row["layers"])
        assert (row["products"] > 0) == (row["layers"] > 0)
        # our kernels keep long prompts to themselves; without them, the device gets copies of the CPU's weights
        copies = row["kernels"] == "off" and 0 < row["layers"] < 5
        # what llama.cpp rearranges for the CPU when our kernels are off is not copied
        assert (row["copied"] > 0) == copies or (repacked and copies), (row["kernels"], row["devices"], row["layers"])
        for name, need in row["need"].items():
            assert row["peak"][name] <= need * 1.02 + (64 << 10), (row, name)


def test_every_split_answers_as_the_cpu_does(stand_in: Path, bundles: dict[str, Path]) -> None:
    check(run(stand_in, bundles["Q8_0"], 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_every_split_answers_the_whole_demo_set_as_the_cpu_does(
    stand_in: Path, bundles: dict[str, Path], kind: str
) -> None:
    check(run(stand_in, bundles[kind], 100), repacked=kind == "Q4_K_M")


def test_a_device_that_fails_while_it_answers(stand_in: Path, bundles: dict[str, Path]) -> None:
    found = run(stand_in, bundles["Q8_0"], "fail")
    assert found["first"]
    assert "the answer was interrupted" in found["error"]
    assert found["exit_code"] == 5
    assert found["text"]
    assert (found["kept"], found["interrupted"]) == (found["text"], True)
    assert found["line"].startswith("CPU: as asked")
    assert (found["again"], found["turns"]) == (found["expected"], 2)
    assert "llama.cpp could not load them" in found["no_memory"]
