"""The findings of `doctor` about the machine and the engines; see `findings_model.py` for models and pictures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bimedix_edge.errors import BimedixEdgeError, HardwareError
from bimedix_edge.hardware.advice import decoder_gpu
from bimedix_edge.hardware.facts import CudaDriver, Hardware, Machine
from bimedix_edge.hardware.machine import inspect_machine
from bimedix_edge.planning.devices import inspect_hardware
from bimedix_edge.settings import Settings

__all__ = ["Finding", "attempt", "engine_findings", "gb", "machine_findings", "network_finding"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: What was checked.
        found: The result, in words.
        exit_code: Exit code of chat if this keeps it from running; 0 if it would run.
        remedy: How to add something that is missing; None if nothing is missing or nothing helps.
        data: The result, for programs.
    """

    subject: str
    found: str
    exit_code: int = 0
    remedy: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


def attempt(subject: str, check: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """Return the findings of a check, or its error as the finding."""
    try:
        return list(check())
    except BimedixEdgeError as error:
        return [Finding(subject, str(error), error.exit_code)]


def gb(n_bytes: int) -> str:
    """Return a size as text."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def machine_findings() -> list[Finding]:
    """Return processor and memory, without loading an engine."""
    machine = inspect_machine()
    sets = "unknown" if machine.features is None else ", ".join(machine.features) or "none for matmuls"
    data = {"system": machine.system, "cpu": machine.cpu, "cores": machine.n_cores, "features": machine.features}
    cores = f"{machine.n_cores} core{'s' if machine.n_cores > 1 else ''}"
    return [
        Finding("machine", f"{machine.system}, {machine.cpu}, {cores}; instruction sets: {sets}", data=data),
        _memory(machine),
    ]


def _memory(machine: Machine) -> Finding:
    parts = ["unknown" if machine.memory_bytes is None else gb(machine.memory_bytes)]
    if machine.available_bytes is not None:
        parts.append(f"{gb(machine.available_bytes)} available")
    if (pages := machine.huge_pages) is not None:
        parts.append(f"transparent huge pages: {pages.transparent or 'none'}")
    data = {
        "total_bytes": machine.memory_bytes,
        "available_bytes": machine.available_bytes,
        "huge_pages": None if machine.huge_pages is None else asdict(machine.huge_pages),
    }
    return Finding("memory", ", ".join(parts), data=data)


def engine_findings(settings: Settings) -> list[Finding]:
    """Return the libraries, and the devices that they can use."""
    version = importlib.metadata.version("bimedix-edge")
    own = Finding("bimedix-edge", f"{version} on Python {platform.python_version()}", data={"version": version})
    found = [own, *attempt("llama-cpp-python", _llama_cpp), *attempt("kernels", lambda: _kernels(settings))]
    found += [
        *attempt("onnxruntime", _onnxruntime),
        *attempt("image encoder's kernels", lambda: _vision_kernels(settings)),
    ]
    if any(finding.exit_code for finding in found):
        return found  # whether a GPU can be used is reported only if both engines load
    hardware = inspect_hardware()
    return [*found, *_cuda(hardware.cuda), _decoder_devices(hardware), _vision_devices(hardware, settings)]


def _llama_cpp() -> list[Finding]:
    # imported here: a library that does not load is a finding, not the end of `doctor`
    from bimedix_edge.decoder import llama

    llama.check_version()
    backends = [backend.name for backend in llama.backends()]
    amx = "; its own use of AMX is switched off" if llama.built_for_amx() else ""
    version = llama.library_version()
    data = {"version": version, "backends": backends, "system_info": llama.system_info().strip()}
    return [Finding("llama-cpp-python", f"{version}, built with {', '.join(backends)}{amx}", data=data)]


def _kernels(settings: Settings) -> list[Finding]:
    from bimedix_edge.decoder import llama

    found = llama.open_kernels(settings.kernels)
    data = {"name": found.name, "reason": found.reason}
    if found.name is None:
        return [Finding("kernels", f"llama.cpp's own: {found.reason}", data=data)]
    text = f"{found.name}, {found.reason}; built for this llama-cpp-python, self-test passed"
    return [Finding("kernels", text, data=data)]


def _onnxruntime() -> list[Finding]:
    from bimedix_edge.vision.onnx import library_version
    from bimedix_edge.vision.providers import built_for_cuda

    version, cuda = library_version(), built_for_cuda()
    built = f", built for CUDA {cuda}" if cuda else ""
    return [Finding("onnxruntime", f"{version}{built}; telemetry off", data={"version": version, "cuda": cuda})]


def _vision_kernels(settings: Settings) -> list[Finding]:
    from bimedix_edge.vision.kernels import choose_vision_kernels

    found = choose_vision_kernels(settings.kernels)
    data = {"name": found.name, "reason": found.reason}
    if found.name is None:
        return [Finding("image encoder's kernels", f"ONNX Runtime's own: {found.reason}", data=data)]
    text = f"{found.name}, {found.reason}, for int8 weights; self-test passed"
    return [Finding("image encoder's kernels", text, data=data)]


def _cuda(driver: CudaDriver | None) -> list[Finding]:
    if driver is None:
        return []
    version = driver.version or "of unknown version"
    runs = "" if driver.cuda is None else f", runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}"
    parts = [f"{version}{runs}"]
    for gpu in driver.gpus:
        free = "" if gpu.free_bytes is None else f", {gb(gpu.free_bytes)} free"
        parts.append(
            f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gb(gpu.total_bytes)}{free})"
        )
    if driver.fault is not None:
        parts.append(f"cannot be used: {driver.fault}")
    return [Finding("NVIDIA driver", "; ".join(parts), data=asdict(driver))]


def _decoder_devices(hardware: Hardware) -> Finding:
    from bimedix_edge.decoder import llama

    data = {"devices": [asdict(device) for device in hardware.devices]}
    missing = decoder_gpu(hardware, llama.PINNED_VERSION)
    if missing is not None:
        return Finding("decoder on", f"the CPU: {missing.cause}", remedy=missing.remedy, data=data)
    gpus = [
        f"{device.name} ({device.description}, {gb(device.free_bytes)} of {gb(device.total_bytes)} free)"
        for device in hardware.devices
        if device.kind in ("gpu", "igpu")
    ]
    return Finding("decoder on", f"{', '.join(gpus)}, or the CPU", data=data)


def _vision_devices(hardware: Hardware, settings: Settings) -> Finding:
    from bimedix_edge.vision.providers import device_of

    wanted = settings.vision_device
    works = [device_of(provider.name) for provider in hardware.providers if provider.loads]
    text, remedy, exit_code = ", ".join(works), None, 0
    for provider in hardware.providers:
        device = device_of(provider.name)
        # a device that this ONNX Runtime does not have is reported only if the settings name it
        if provider.loads or not (provider.built_in or device == wanted):
            continue
        text += f"; not {device}: {provider.reason}"
        if device == wanted or (device == "cuda" and hardware.cuda is not None):
            remedy, exit_code = provider.remedy, HardwareError.exit_code if device == wanted else exit_code
    data = {"vision_device": wanted, "providers": [asdict(provider) for provider in hardware.providers]}
    return Finding("image encoder on", f"{text}; vision_device {wanted}", exit_code, remedy, data)


def network_finding() -> Finding:
    """Return the use of networks by this process."""
    n_open = _internet_sockets()
    opened = "" if n_open is None else f"; internet sockets open in this process: {n_open}"
    return Finding("network", f"used by `pull` alone{opened}", data={"internet_sockets": n_open, "telemetry": False})


def _internet_sockets() -> int | None:
    """Return how many internet sockets this process has; None if the system does not say."""
    if sys.platform != "linux":
        return None
    tables = [Path("/proc/self/net") / name for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")]
    known = {line.split()[9] for path in tables if path.exists() for line in path.read_text().splitlines()[1:]}
    targets = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            targets.append(os.readlink(entry.path))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sum(target.removeprefix("socket:[").removesuffix("]") in known for target in targets)
