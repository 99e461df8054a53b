"""The wheel that a user installs: one package with converters and models inside, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# the home of the user who runs the tests, before conftest.py gives them one of their own
USER_HOME = os.environ.get("HOME", "")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    # the kernels are compiled against llama-cpp-python, whose wheel is in the user's cache
    subprocess.run(command, check=True, env={**os.environ, "HOME": USER_HOME})
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_no_generic_name_reaches_site_packages(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {"bimedix_edge", "bimedix_edge-0.1.0.dist-info"}


def test_every_module_and_the_demo_checkpoint_are_inside(names: set[str]) -> None:
    for folder, inside in (("bimedix_edge", ""), ("converters", "converters/"), ("models", "models/")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"bimedix_edge/{inside}{path.relative_to(ROOT / folder).as_posix()}" in names
    checkpoint = ROOT / "models" / "demo" / "checkpoint"
    for path in checkpoint.rglob("*"):
        if path.is_file():
            assert f"bimedix_edge/models/demo/checkpoint/{path.relative_to(checkpoint).as_posix()}" in names
    assert "bimedix_edge/py.typed" in names
    assert {f"bimedix_edge/schema/reports/{name}.json" for name in ("report", "summary", "vqa")} <= names


def test_nothing_that_only_developers_need_is_inside(names: set[str]) -> None:
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name or name.endswith(".pyc")]


def test_the_licence_travels_with_it(names: set[str]) -> None:
    assert any(name.endswith("LICENSE") for name in names)
