"""Measures a real card: builds the pinned llama.cpp with CUDA and runs the 8B's shape on it through our runtime.

    python3 tests/device/baseline.py WORK [--shape 8b] [--types q4_k_m,q8_0] [--rounds 3] [--skip-build]
    python3 tests/device/baseline.py WORK --render

WORK is a directory for 40 GB (8b), kept for the next run: a virtual environment, a checkpoint with random weights
(`converters/synthetic/checkpoint.py`), and a bundle of each type with a float16 image encoder. The script needs Linux,
an NVIDIA card with its driver, the CUDA toolkit's `nvcc`, a C++ compiler and pip's package index. It starts with the
standard library alone.

`bimedix-edge bench` measures each bundle with all layers on the card, half of them, and none; the image encoder is on
the card except the last time. WORK/results.json keeps the output of `bench` and `doctor`, and WORK/table.md the table.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from results_table import render

REPOSITORY = Path(__file__).resolve().parents[2]
PINNED = "0.3.36"
SHAPES = ("demo", "1b", "8b")
_NO_MACHINE = 5
_NVCC = Path("/usr/local/cuda/bin/nvcc")


class MachineError(Exception):
    """This machine lacks something that the measurement needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code: 0 done, 2 wrong usage, 5 a machine that lacks something."""
    given = parser().parse_args(arguments)
    work: Path = given.work.resolve()
    try:
        if not given.render:
            check_machine()
            work.mkdir(parents=True, exist_ok=True)
            run(work, given.shape, given.types, given.rounds, build=not given.skip_build)
        table = render(json.loads((work / "results.json").read_text(encoding="utf-8")))
    except (MachineError, FileNotFoundError) as error:
        print(f"baseline: {error}", file=sys.stderr)
        return _NO_MACHINE
    (work / "table.md").write_text(table, encoding="utf-8")
    print(table, end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    found = argparse.ArgumentParser(prog="baseline.py", description="Measure the runtime on an NVIDIA card.")
    found.add_argument("work", type=Path, metavar="WORK", help="a directory for 40 GB, kept for the next run")
    found.add_argument("--shape", choices=SHAPES, default="8b")
    found.add_argument(
        "--types", type=_types, default=["q4_k_m", "q8_0"], metavar="TYPE,...", help="types of the decoder"
    )
    found.add_argument("--rounds", type=_positive, default=3, metavar="N", help="rounds; results are their medians")
    found.add_argument("--skip-build", action="store_true", help="use the virtual environment in WORK")
    found.add_argument("--render", action="store_true", help="only write the table of WORK/results.json again")
    return found


def _types(text: str) -> list[str]:
    types = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not types or not all(part.replace("_", "").isalnum() for part in types):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of types such as q4_k_m,q8_0")
    return types


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def check_machine() -> None:
    """Raise MachineError unless there is a driver, a card, and a compiler for it."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError as error:
        raise MachineError("There is no NVIDIA driver: libcuda.so.1 does not load. Install the driver.") from error
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise MachineError("NVIDIA's driver finds no card. `bimedix-edge doctor` says why.")
    if shutil.which("nvcc") is None and not _NVCC.exists():
        raise MachineError("There is no CUDA toolkit: nvcc is not in the path. Install it, or add it to PATH.")


def run(work: Path, shape: str, types: Sequence[str], rounds: int, *, build: bool) -> None:
    """Build, convert and measure; reuse the files that WORK has already."""
    environ = environment(work)
    if build:
        build_venv(work, environ)
    python = str(work / "venv/bin/python")
    command = [python, "-m", "bimedix_edge.cli.main"]
    make_bundles(work, shape, types, python, environ)
    doctor = json.loads(output([*command, "doctor", "--json", "-m", f"baseline:{types[0]}"], environ))
    runs = []
    for kind in types:
        model = f"baseline:{kind}"
        manifest = json.loads(output([*command, "models", "show", "--json", model], environ))
        n_layer = manifest["decoder"]["n_layer"]
        for layers, device in (("all", "cuda"), (str(n_layer // 2), "cuda"), ("0", "cpu")):
            words = ["bench", "--model", model, "--gpu-layers", layers, "--vision-device", device]
            report = json.loads(output([*command, *words, "--rounds", str(rounds), "--json"], environ))
            runs.append({"type": kind, "gpu_layers": layers, "n_layer": n_layer, "report": report})
            # after each run, so that an interrupted script keeps its finished runs
            results = {"shape": shape, "llama_cpp_python": PINNED, "doctor": doctor, "runs": runs}
            (work / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")


def environment(work: Path) -> dict[str, str]:
    """Return the environment of all commands, with the store in WORK and the toolkit in the path."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(_NVCC.parent)])
    places = {"BIMEDIX_EDGE_STORE_DIR": str(work / "store"), "BIMEDIX_EDGE_CACHE_DIR": str(work / "cache")}
    return os.environ | places | {"PATH": path}


def build_venv(work: Path, environ: dict[str, str]) -> None:
    """Make the virtual environment: the pinned llama.cpp with CUDA, ONNX Runtime with CUDA and cuDNN, this package."""
    subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True)
    pip = [str(work / "venv/bin/python"), "-m", "pip", "install"]
    cuda = environ | {"CMAKE_ARGS": "-DGGML_CUDA=on"}
    # not from the cache: a wheel there may have been built without CUDA
    source = ["--no-cache-dir", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={PINNED}"]
    subprocess.run([*pip, *source], check=True, env=cuda)
    subprocess.run(
        [*pip, "onnxruntime-gpu[cuda,cudnn]", "scikit-build-core", "cmake", "ninja"], check=True, env=environ
    )
    # with the llama.cpp that was just built; an isolated build would compile another one
    subprocess.run([*pip, "--no-build-isolation", str(REPOSITORY)], check=True, env=environ)


def make_bundles(work: Path, shape: str, types: Sequence[str], python: str, environ: dict[str, str]) -> None:
    """Write a checkpoint with random weights and a bundle of each type."""
    checkpoint = work / f"checkpoint-{shape}"
    if not (checkpoint / "config.json").exists():
        generate = ["-m", "bimedix_edge.converters.synthetic.checkpoint", "--shape", shape, str(checkpoint)]
        subprocess.run([python, *generate], check=True, env=environ)
    for kind in types:
        if not (work / "store/baseline" / kind / "manifest.json").exists():
            words = ["convert", str(checkpoint), "--type", kind, "--name", "baseline", "--vision", "float16"]
            subprocess.run([python, "-m", "bimedix_edge.cli.main", *words], check=True, env=environ)


def output(command: Sequence[str], environ: dict[str, Any]) -> str:
    """Run a command and return its standard output; its standard error is shown."""
    return subprocess.run(command, check=True, env=environ, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
