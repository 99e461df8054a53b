"""Compiles native programs for tests, against the headers and libraries of llama-cpp-python."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
NATIVE = ROOT / "tests" / "native"
GGML_LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
GGML_HEADERS = Path(llama_cpp.__file__).parents[1] / "include"


def compiler() -> str:
    """Return a C++ compiler with GCC's options; skip the test without one."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None or sys.platform == "win32":
        pytest.skip("no C++ compiler with GCC's options")
    return found


def compile_native(sources: Sequence[Path], output: Path, *options: str) -> Path:
    """Compile and link C++17 sources into `output`; a warning is an error."""
    command = [compiler(), "-std=c++17", "-Wall", "-Wextra", "-Werror", *map(str, sources), "-o", str(output), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output


def with_ggml() -> list[str]:
    """Return the compiler options for ggml's public headers and its libraries."""
    # the linker would report symbols that ggml's own dependencies provide, such as OpenMP's
    ignored = ["-Wl,--unresolved-symbols=ignore-in-shared-libs"] if platform.system() == "Linux" else []
    libraries = ["-lggml", "-lggml-base", "-lggml-cpu", "-ldl"]
    headers = ["-isystem", str(GGML_HEADERS)]
    return [*headers, f"-L{GGML_LIBRARIES}", f"-Wl,-rpath,{GGML_LIBRARIES}", *ignored, *libraries]
