"""Explains why no GPU is used, and gives the command that would change it on this machine."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from bimedix_edge.hardware.facts import CudaDriver, Hardware

__all__ = ["Missing", "build_command", "decoder_gpu", "missing_gpu_library", "vision_cuda"]

# NVIDIA, "CUDA Compatibility", table 1: the first driver that runs any CUDA of a major version
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
# the last releases on PyPI that were built for CUDA 12, as their extras say
_FOR_CUDA_12 = ">=1.23,<1.25"
_GPU_LIBRARY = re.compile(r"\b(lib)?(cuda|nvcuda|cudart|cublas|nccl)\w*(\.so\.\d+|\.dll)")
_DRIVER_COMMAND = "install NVIDIA's current driver and restart the machine"


@dataclass(frozen=True)
class Missing:
    """Why a GPU is not used.

    Attributes:
        cause: Cause in words, without a full stop.
        remedy: What to do, without a full stop; None where this machine has no GPU that could be used.
    """

    cause: str
    remedy: str | None


def decoder_gpu(hardware: Hardware, version: str) -> Missing | None:
    """Return why llama.cpp has no GPU to compute on; None where it has one.

    Args:
        hardware: Devices and backends of this machine.
        version: Version of the installed llama-cpp-python.
    """
    if any(device.kind in ("gpu", "igpu") for device in hardware.devices):
        return None
    backends = {backend.name for backend in hardware.backends}
    system, driver = hardware.machine.system, hardware.cuda
    if "CUDA" in backends or "Metal" in backends:
        return _no_device("CUDA" if "CUDA" in backends else "Metal", hardware)
    if system == "Darwin arm64":
        return Missing("llama.cpp was built without Metal", f"run: {build_command('METAL', system, version)}")
    if driver is not None and driver.fault is None:
        toolkit = "" if hardware.cuda_compiler else "install the CUDA toolkit, then "
        command = build_command("CUDA", system, version)
        return Missing("llama.cpp was built without CUDA", f"{toolkit}run: {command}")
    return _no_driver(hardware) or Missing("there is no GPU here that this program knows", None)


def vision_cuda(driver: CudaDriver | None, *, built_for: str, version: str, failure: str | None) -> Missing | None:
    """Return why ONNX Runtime cannot compute on CUDA; None where no obstacle is known.

    Args:
        driver: NVIDIA's driver; None if it is not installed.
        built_for: CUDA version that ONNX Runtime was built for, such as `13.0`; empty for a build without CUDA.
        version: Version of ONNX Runtime.
        failure: Why its provider does not load; None if it loads or was not tried.
    """
    pip = f"{_quoted(sys.executable)} -m pip"
    if driver is None:
        return Missing("no NVIDIA driver is installed", _DRIVER_COMMAND)
    if driver.fault is not None:
        return _faulty(driver)
    if not built_for:
        command = f"{pip} uninstall -y onnxruntime && {pip} install 'onnxruntime-gpu[cuda,cudnn]'"
        return Missing("this ONNX Runtime was built without CUDA", f"run: {command}")
    major = int(built_for.split(".", maxsplit=1)[0])
    if driver.cuda is not None and driver.cuda[0] < major:
        return _too_old(driver, major, f"run: {pip} install 'onnxruntime-gpu[cuda,cudnn]{_FOR_CUDA_12}'")
    if failure is not None:
        command = f"{pip} install 'onnxruntime-gpu[cuda,cudnn]=={version}'"
        return Missing(f"ONNX Runtime cannot load what it needs for CUDA {built_for} ({failure})", f"run: {command}")
    return None


def missing_gpu_library(message: str) -> str | None:
    """Return which GPU library a loader's message says is missing, in words; None if it is about another library.

    Args:
        message: Message of the dynamic linker, such as `libcudart.so.12: cannot open shared object file`.
    """
    match = _GPU_LIBRARY.search(message)
    return None if match is None else f"{match.group()} cannot be loaded"


def build_command(backend: str | None, system: str, version: str) -> str:
    """Return the command that builds llama.cpp with a backend, in the syntax of the system's shell.

    Args:
        backend: Name in llama.cpp's CMake options, such as `CUDA` or `METAL`; None is the CPU alone.
        system: Operating system and architecture; see `Machine.system`.
        version: Version of llama-cpp-python.
    """
    # not from pip's cache: a wheel there may have been built without the backend
    package = f"llama-cpp-python=={version}"
    options = "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python"
    flag = "-DGGML_CUDA=off" if backend is None else f"-DGGML_{backend}=on"
    setting = f'$env:CMAKE_ARGS = "{flag}"; &' if system.startswith("Windows") else f'CMAKE_ARGS="{flag}"'
    return f"{setting} {_quoted(sys.executable)} -m pip install {options} {package}"


def _no_device(backend: str, hardware: Hardware) -> Missing:
    """Return why a backend of this build finds no device."""
    driver = hardware.cuda
    said = f" ({'; '.join(hardware.backend_faults)})" if hardware.backend_faults else ""
    if backend == "CUDA" and (found := _no_driver(hardware)) is not None:
        return found
    if backend == "CUDA" and driver is not None and "insufficient" in said:
        return _too_old(driver, None, "build llama.cpp with an older CUDA toolkit")
    return Missing(f"llama.cpp has {backend}, but finds no device for it{said}", None)


def _no_driver(hardware: Hardware) -> Missing | None:
    driver = hardware.cuda
    if driver is not None:
        return None if driver.fault is None else _faulty(driver)
    if hardware.n_nvidia_cards:
        return Missing("there is an NVIDIA card, but no driver for it is installed", _DRIVER_COMMAND)
    return None


def _faulty(driver: CudaDriver) -> Missing:
    return Missing(f"NVIDIA's driver {driver.version or ''} cannot be used ({driver.fault})", _DRIVER_COMMAND)


def _too_old(driver: CudaDriver, major: int | None, otherwise: str) -> Missing:
    runs = "" if driver.cuda is None else f" runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}"
    wanted = "a newer one" if major is None else f"CUDA {major}"
    first = _FIRST_DRIVER.get(major or 0)
    newer = _DRIVER_COMMAND if first is None else f"install NVIDIA's driver {first} or later"
    return Missing(
        f"NVIDIA's driver {driver.version or ''} is too old: it{runs}, and {wanted} is wanted",
        f"{newer}, or {otherwise}",
    )


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
