"""Facts from NVIDIA's driver; an unusable GPU is an error that names the cause and the command to run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from fake_nvidia import compile_library, environment

from bimedix_edge.hardware.nvidia import count_cards

MAIN = [sys.executable, "-m", "bimedix_edge.cli.main"]
BUILT_FOR = str(getattr(onnxruntime, "cuda_version", ""))
needs_cuda_build = pytest.mark.skipif(not BUILT_FOR, reason="this build of ONNX Runtime does not know CUDA")


def asked(environ: dict[str, str]) -> object:
    code = "import json, dataclasses, bimedix_edge.hardware.nvidia as n\n"
    code += "print(json.dumps(dataclasses.asdict(n.inspect_driver())))"
    return json.loads(subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=True).stdout)


def test_facts_from_the_driver(tmp_path: Path) -> None:
    gpus = [
        {"name": "Fake GPU 0", "capability": [8, 9], "total_bytes": 8 << 30, "free_bytes": 6 << 30},
        # the management library does not know the second one
        {"name": "Fake GPU 1", "capability": [8, 9], "total_bytes": 16 << 30, "free_bytes": None},
    ]
    found = asked(environment(tmp_path, cuda=12040, version="550.54.14", count=2))
    assert found == {"version": "550.54.14", "cuda": [12, 4], "gpus": gpus, "fault": None}


def test_a_driver_that_fails_says_why(tmp_path: Path) -> None:
    found = asked(environment(tmp_path, init=803))
    assert found == {"version": "580.65.06", "cuda": [13, 0], "gpus": [], "fault": "cuInit: driver mismatch (803)"}
    found = asked(environment(tmp_path / "none", count=0))
    assert found == {"version": "580.65.06", "cuda": [13, 0], "gpus": [], "fault": "it finds no device"}


@pytest.mark.parametrize(("memory", "expected"), [(1 << 33, 100e9), (300 << 20, None)])
def test_the_bandwidth_of_a_card(memory: int, expected: float | None, tmp_path: Path) -> None:
    code = "from bimedix_edge.hardware.nvidia_bandwidth import copy_bandwidth; print(copy_bandwidth())"
    environ = environment(tmp_path, memory=memory)
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    assert found == "None\n" if expected is None else float(found) == pytest.approx(expected, rel=0.01)


def test_cards_are_counted_without_a_driver(tmp_path: Path) -> None:
    for place, vendor, kind in (("1", "0x10de", "0x030000"), ("2", "0x10de", "0x040300"), ("3", "0x1002", "0x030000")):
        folder = tmp_path / "sys/bus/pci/devices" / place
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    assert count_cards(tmp_path) == 1  # the others are a sound device and a card of another vendor
    assert count_cards(tmp_path / "nowhere") == 0


def refused(environ: dict[str, str], bundle: Path) -> str:
    words = ["ask", "-m", str(bundle), "--vision-device", "cuda", "Hello"]
    result = subprocess.run([*MAIN, *words], env=environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr.startswith("bimedix-edge: The image encoder cannot run on cuda: ")
    assert result.stderr.endswith("or choose --vision-device cpu.\n")
    return " ".join(result.stderr.split())


@needs_cuda_build
def test_a_driver_that_is_too_old_for_the_wheel(tmp_path: Path, bundles: dict[str, Path]) -> None:
    message = refused(environment(tmp_path, cuda=11040, version="470.1"), bundles["F16"])
    major = BUILT_FOR.partition(".")[0]
    assert f"NVIDIA's driver 470.1 is too old: it runs CUDA up to 11.4, and CUDA {major} is wanted" in message
    assert "Install NVIDIA's driver 5" in message


@needs_cuda_build
def test_a_provider_that_fails_to_load_names_what_it_lacks(tmp_path: Path, bundles: dict[str, Path]) -> None:
    message = refused(environment(tmp_path, cuda=99000), bundles["F16"])
    assert f"cannot load what it needs for CUDA {BUILT_FOR} (libcu" in message
    assert "cannot open shared object file" in message
    assert f"-m pip install 'onnxruntime-gpu[cuda,cudnn]=={onnxruntime.__version__}'" in message


def test_a_driver_that_fails(tmp_path: Path, bundles: dict[str, Path]) -> None:
    message = refused(environment(tmp_path, init=803), bundles["F16"])
    assert "NVIDIA's driver 580.65.06 cannot be used (cuInit: driver mismatch (803))" in message


def test_a_llama_cpp_for_cuda_without_its_libraries_is_a_hardware_error(tmp_path: Path) -> None:
    # a binding whose library depends on one that is missing
    compile_library(tmp_path / "libcudart.so.12", "-xc", "/dev/null")
    needs = ["-Wl,--no-as-needed", "-L", str(tmp_path), "-l:libcudart.so.12"]
    compile_library(tmp_path / "llama_cpp/libllama.so", "-xc", "/dev/null", *needs)
    (tmp_path / "libcudart.so.12").unlink()
    loads = f"import ctypes\nctypes.CDLL({str(tmp_path / 'llama_cpp/libllama.so')!r})\n"
    (tmp_path / "llama_cpp/__init__.py").write_text(loads)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['bimedix-edge', 'doctor']\n"
    code += "from bimedix_edge.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 5, result.stderr
    shown = " ".join(result.stdout.split())
    assert "it was built for a GPU, and libcudart.so.12 cannot be loaded" in shown
    assert "GGML_CUDA=off" in shown
