"""An editable install imports nothing from beside its clone: each module there is a trap, and no trap is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from imaging.phantoms import dataset, stored_values, written

ROOT = Path(__file__).resolve().parents[1]
# the home of the user who runs the tests, before conftest.py gives them one of their own
USER_HOME = os.environ.get("HOME", "")
PARTS = ("bimedix_edge", "converters", "kernels", "models", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")
# python-gdcm tries `import dl`; the others are modules that this package or its dependencies import
TRAPS = ("dl/__init__.py", "numpy.py", "yaml/__init__.py", "onnxruntime.py", "gdcm.py", "pylibjpeg/__init__.py")


@dataclass(frozen=True)
class Install:
    """An editable install with traps beside it.

    Attributes:
        clone: Directory that is installed.
        venv: Virtual environment with the install.
        away: Working directory of every command, unrelated to the clone.
        sprung: File to which an imported trap adds its name.
    """

    clone: Path
    venv: Path
    away: Path
    sprung: Path

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the virtual environment."""
        program, *arguments = map(str, words)
        command = [str(self.venv / "bin" / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.away)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of an expression in the installed Python."""
        code = f"import importlib.util, json, sys; print(json.dumps({expression}))"
        result = self.run("python", "-c", code)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    if sys.platform == "win32":
        pytest.skip("the programs of a virtual environment lie elsewhere on Windows")
    folder = tmp_path_factory.mktemp("editable")
    made = Install(folder / "beside" / "clone", folder / "venv", folder / "away", folder / "sprung")
    made.away.mkdir()
    for part in PARTS:
        copy(ROOT / part, made.clone / part)
    set_traps(made)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made.venv)], check=True)
    purelib = made.venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # Python reads no .pth files in there, so the running interpreter's own editable install stays out
    (purelib / "dependencies.pth").write_text("\n".join(dependencies()))
    pip = [sys.executable, "-m", "pip", "--python", str(made.venv / "bin" / "python"), "install", "--quiet"]
    # the kernels are compiled against llama-cpp-python, whose wheel is in the user's cache
    environ = {**os.environ, "HOME": USER_HOME}
    subprocess.run([*pip, "--no-deps", "--editable", str(made.clone)], check=True, env=environ)
    yield made
    assert not made.sprung.exists(), f"imported from beside the clone: {made.sprung.read_text()}"


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def set_traps(made: Install) -> None:
    """Write modules beside the clone that leave a mark and raise when something imports them."""
    for name in TRAPS:
        path = made.clone.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(made.sprung)!r}, 'a').write({name!r} + ' ')\nraise SystemError('a trap: {name}')\n")


def dependencies() -> list[str]:
    """Return the directories of the running interpreter that hold the dependencies."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def test_the_clone_is_what_is_installed(install: Install) -> None:
    found = install.evaluate("importlib.util.find_spec('bimedix_edge.converters.convert').origin")
    assert found == str(install.clone / "converters" / "convert.py")


def test_no_directory_outside_the_clone_is_importable(install: Install) -> None:
    # with -c, the first entry is the working directory; it is the user's own choice
    first, *path = install.evaluate("sys.path")
    assert first == ""
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    allowed = [install.clone, install.venv, *map(Path, dependencies()), *standard]
    allowed += [Path(sys.base_prefix, "lib", Path(entry).name) for entry in path if entry.endswith(".zip")]
    foreign = [entry for entry in path if not any(Path(entry).resolve().is_relative_to(each) for each in allowed)]
    assert foreign == []


def test_modules_beside_the_clone_cannot_be_imported(install: Install) -> None:
    for trap in TRAPS:
        name = trap.split("/")[0].removesuffix(".py")
        origin = install.evaluate(f"getattr(importlib.util.find_spec({name!r}), 'origin', None)")
        assert origin is None or Path(origin).parent != install.clone.parent, trap
        assert (origin is None) == (name == "dl")


@pytest.mark.parametrize("syntax", ["JPEG lossless SV1", "JPEG 2000 lossless"])
def test_a_compressed_dicom_file_is_decoded(install: Install, syntax: str) -> None:
    # python-gdcm decodes the first, pylibjpeg the second
    (install.away / "compressed.dcm").write_bytes(written(dataset(stored_values(12, signed=False), 12), syntax))
    result = install.run("bimedix-edge", "image", "--json", "compressed.dcm")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)
    assert not install.sprung.exists()


def test_doctor_reports_its_findings(install: Install) -> None:
    result = install.run("bimedix-edge", "doctor", "--json")
    assert "Traceback" not in result.stderr
    report = json.loads(result.stdout)
    assert "DICOM codecs" in {finding["subject"] for finding in report["findings"]}
    assert (result.returncode == 0) == report["ok"]
    assert not install.sprung.exists()
