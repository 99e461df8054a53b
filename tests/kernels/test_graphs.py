"""Random graphs through ggml's scheduler: the plug-in computes the same as the CPU backend alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_build import NATIVE, compile_native, with_ggml
from native_products import INSTRUCTION_SETS, usable

from bimedix_edge.decoder.kernels import STEM
from bimedix_edge.native import find_library

N_GRAPHS, N_SAMPLE = 1000, 100


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("native") / "random_graphs"
    return compile_native([NATIVE / "random_graphs.cpp"], output, "-O1", *with_ggml())


def check(driver: Path, name: str, first: int, count: int) -> None:
    if not usable(name):
        pytest.skip(f"this processor cannot run {name}")
    command = [str(driver), str(find_library(STEM)), name, str(first), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    _, _, _, ours, _, of = result.stdout.splitlines()[-1].split()
    # except views, the plug-in takes what the CPU backend takes, so that the scheduler does not split a graph
    assert int(ours) > 0.9 * int(of)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_a_sample_of_the_random_graphs(driver: Path, name: str) -> None:
    check(driver, name, 0, N_SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_random_graphs(driver: Path, name: str) -> None:
    check(driver, name, 0, N_GRAPHS)
