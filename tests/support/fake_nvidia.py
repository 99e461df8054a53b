"""Stand-ins for NVIDIA's libraries: real shared libraries, compiled by a test, that answer with given values."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "native" / "fake_nvidia.c"


def compile_library(target: Path, *arguments: str) -> None:
    """Compile a shared library from C; skip the test without a compiler or outside Linux."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(target), *arguments], check=True)


@dataclass(frozen=True)
class Driver:
    """The answers of a driver.

    Attributes:
        cuda: Answer of `cuDriverGetVersion`: 12040 is 12.4.
        version: Version of the driver.
        init: Result of `cuInit`; 803 is a mismatch.
        count: Number of cards.
        memory: Memory that can be allocated, in bytes.
    """

    cuda: int = 13000
    version: str = "580.65.06"
    init: int = 0
    count: int = 1
    memory: int = 1 << 33


def environment(folder: Path, **answers: Any) -> dict[str, str]:
    """Return an environment in which the dynamic linker finds a driver.

    Args:
        folder: Folder for the libraries.
        answers: Fields of `Driver`.
    """
    driver = Driver(**answers)
    facts = [f"-DINIT={driver.init}", f"-DCUDA={driver.cuda}", f"-DCOUNT={driver.count}"]
    facts += [f"-DMEMORY={driver.memory}ull", f'-DVERSION="{driver.version}"']
    compile_library(folder / "libcuda.so.1", str(SOURCE), *facts)
    shutil.copy(folder / "libcuda.so.1", folder / "libnvidia-ml.so.1")
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}
