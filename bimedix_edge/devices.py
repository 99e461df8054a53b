"""What hardware is here, and whether a model fits into its memory."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from bimedix_edge.bundle import Manifest
from bimedix_edge.cuda import inspect_driver
from bimedix_edge.errors import HardwareError
from bimedix_edge.hardware import ComputeDevice, Hardware, Machine

__all__ = ["MemoryNeed", "check_memory", "estimate_memory", "inspect_hardware", "inspect_machine"]

_F16_BYTES = 2


@dataclass(frozen=True)
class MemoryNeed:
    """An estimate of what running a bundle takes, in bytes."""

    weights_bytes: int
    kv_bytes: int
    vision_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return the sum."""
        return self.weights_bytes + self.kv_bytes + self.vision_bytes


def inspect_machine() -> Machine:
    """Return what is known about this machine."""
    total, available = _memory()
    return Machine(f"{platform.system()} {platform.machine()}", _cpu_name(), _n_cores(), total, available)


def inspect_hardware() -> Hardware:
    """Return what is known about this machine, and what the engines can compute on; this loads both of them.

    Raises:
        DecoderError, VisionError: an engine does not load.
    """
    # imported here: the machine alone can be asked without the engines
    from bimedix_edge import decoder, vision

    machine = inspect_machine()
    devices = tuple(_with_memory(device, machine) for device in decoder.compute_devices())
    return Hardware(
        machine=machine,
        backends=decoder.backends(),
        backend_faults=decoder.backend_faults(),
        devices=devices,
        providers=vision.providers(),
        cuda=inspect_driver(),
    )


def _with_memory(device: ComputeDevice, machine: Machine) -> ComputeDevice:
    """Return a device with the memory that a process may use of it: ggml says that all of the machine's is free."""
    if device.kind != "cpu" or machine.memory_bytes is None or machine.available_bytes is None:
        return device
    return replace(device, free_bytes=machine.available_bytes, total_bytes=machine.memory_bytes)


def estimate_memory(manifest: Manifest, n_ctx: int) -> MemoryNeed:
    """Return the memory that a bundle needs with a context of `n_ctx` tokens, from its manifest alone.

    Weights count in full: they are mapped from the file, but every token reads all of them, so a machine that cannot
    keep them in memory reads them from disk for every token.
    """
    decoder = manifest.decoder
    kv = 2 * decoder.n_layer * decoder.n_head_kv * decoder.head_dim * _F16_BYTES * n_ctx
    return MemoryNeed(manifest.files["decoder"].size_bytes, kv, manifest.files["vision"].size_bytes)


def check_memory(manifest: Manifest, n_ctx: int) -> MemoryNeed:
    """Return the estimate if it fits into this machine's memory.

    Raises:
        HardwareError: it does not.
    """
    need = estimate_memory(manifest, n_ctx)
    machine = inspect_machine()
    if machine.memory_bytes is not None and need.total_bytes > machine.memory_bytes:
        raise HardwareError(
            f"Expected memory for {need.total_bytes / 1e9:.1f} GB (weights {need.weights_bytes / 1e9:.1f}, context of "
            f"{n_ctx} tokens {need.kv_bytes / 1e9:.1f}, vision {need.vision_bytes / 1e9:.1f}), but this machine has "
            f"{machine.memory_bytes / 1e9:.1f} GB; choose a smaller --ctx-size or a smaller quantization."
        )
    return need


def _n_cores() -> int:
    """Return usable cores; llama.cpp's matmuls gain nothing from the second hardware thread of a core."""
    if sys.platform != "linux":
        return max(1, os.cpu_count() or 1)
    usable = os.sched_getaffinity(0)
    siblings = set()
    for cpu in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    return max(1, min(len(siblings), _cgroup_cores() or len(siblings)))


def _cgroup_cores() -> int | None:
    """Return the processor quota of the control group, rounded up, if there is one."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.exists():
        return None
    quota, period = path.read_text().split()
    return None if quota == "max" else max(1, -(-int(quota) // int(period)))


def _memory() -> tuple[int | None, int | None]:
    if sys.platform == "linux":
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
        total, available = int(fields["MemTotal"]) * 1024, int(fields["MemAvailable"]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            total = min(total, int(text))
        return total, min(available, total)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists() and (match := re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)):
        return match.group(1)
    return platform.processor() or platform.machine()
