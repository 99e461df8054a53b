"""What hardware is here, and whether a model fits into its memory."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, replace

from bimedix_edge.bundle import Manifest
from bimedix_edge.cuda import count_cards, inspect_driver
from bimedix_edge.errors import HardwareError
from bimedix_edge.hardware import ComputeDevice, Hardware, Machine
from bimedix_edge.host_memory import huge_pages, memory
from bimedix_edge.processor import count_cores, cpu_name, instruction_sets

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
    total, available = memory()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        n_cores=count_cores(),
        memory_bytes=total,
        available_bytes=available,
        features=instruction_sets(),
        huge_pages=huge_pages(),
    )


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
        n_nvidia_cards=count_cards(),
        cuda_compiler=shutil.which("nvcc") is not None,
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
