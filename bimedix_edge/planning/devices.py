"""Inspects the machine with its engines: the devices that llama.cpp and ONNX Runtime can compute on."""

from __future__ import annotations

import shutil
from dataclasses import replace

from bimedix_edge.hardware.facts import ComputeDevice, Hardware, Machine
from bimedix_edge.hardware.machine import inspect_machine
from bimedix_edge.hardware.nvidia import count_cards, inspect_driver

__all__ = ["inspect_hardware"]


def inspect_hardware(*, with_providers: bool = True) -> Hardware:
    """Return the facts about this machine and about the devices of both engines; this loads the engines.

    Args:
        with_providers: Whether to try ONNX Runtime's providers too, which takes longest.

    Raises:
        DecoderError, VisionError: An engine does not load.
    """
    # imported here, so that importing this module loads no engine
    from bimedix_edge.decoder import llama
    from bimedix_edge.vision.providers import providers

    machine = inspect_machine()
    devices = tuple(_with_memory(device, machine) for device in llama.compute_devices())
    return Hardware(
        machine=machine,
        backends=llama.backends(),
        backend_faults=llama.backend_faults(),
        devices=devices,
        providers=providers() if with_providers else (),
        cuda=inspect_driver(),
        n_nvidia_cards=count_cards(),
        cuda_compiler=shutil.which("nvcc") is not None,
    )


def _with_memory(device: ComputeDevice, machine: Machine) -> ComputeDevice:
    """Return a device with the memory that a process may use; ggml reports all of the machine's memory as free."""
    if device.kind != "cpu" or machine.memory_bytes is None or machine.available_bytes is None:
        return device
    return replace(device, free_bytes=machine.available_bytes, total_bytes=machine.memory_bytes)
