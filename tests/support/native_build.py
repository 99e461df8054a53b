"""Compiles what the kernels' tests need natively, against the headers and libraries that llama-cpp-python brings."""

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
    """Return a C++ compiler; the test is skipped where there is none, or none with GCC's options."""
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
    """Return the options that find ggml's public headers and link its libraries."""
    # the linker reports what libraries lack that they load themselves, such as OpenMP's
    ignored = ["-Wl,--unresolved-symbols=ignore-in-shared-libs"] if platform.system() == "Linux" else []
    libraries = ["-lggml", "-lggml-base", "-lggml-cpu", "-ldl"]
    headers = ["-isystem", str(GGML_HEADERS)]
    return [*headers, f"-L{GGML_LIBRARIES}", f"-Wl,-rpath,{GGML_LIBRARIES}", *ignored, *libraries]
