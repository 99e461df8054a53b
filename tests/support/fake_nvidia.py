"""Stand-ins for NVIDIA's libraries: real shared libraries, compiled by a test, that answer with given values."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "native" / "fake_nvidia.c"


def compile_library(target: Path, *arguments: str) -> None:
    """Compile a shared library from C; skip the test without a compiler or outside Linux."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(target), *arguments], check=True)


def environment(
    folder: Path, *, cuda: int = 13000, version: str = "580.65.06", init: int = 0, count: int = 1, memory: int = 1 << 33
) -> dict[str, str]:
    """Return an environment in which the dynamic linker finds a driver.

    Args:
        folder: where the libraries are put.
        cuda: what `cuDriverGetVersion` says: 12040 is 12.4.
        version: of the driver.
        init: what `cuInit` returns; 803 is a mismatch.
        count: of cards.
        memory: that can be allocated, in bytes.
    """
    facts = [f"-DINIT={init}", f"-DCUDA={cuda}", f"-DCOUNT={count}", f"-DMEMORY={memory}ull", f'-DVERSION="{version}"']
    compile_library(folder / "libcuda.so.1", str(SOURCE), *facts)
    shutil.copy(folder / "libcuda.so.1", folder / "libnvidia-ml.so.1")
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}
