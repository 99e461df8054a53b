"""Facts about hardware: one tree of plain data, filled by `devices.inspect_hardware`.

    Hardware
    ├── machine: Machine                     processor, memory, huge pages
    ├── backends: Backend, ...               backends that llama.cpp was built with
    ├── devices: ComputeDevice, ...          devices that it can compute on
    ├── providers: Provider, ...             execution providers of ONNX Runtime
    └── cuda: CudaDriver | None              NVIDIA's driver, its version and devices

This module imports nothing, so that each engine's door can fill in its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Backend",
    "ComputeDevice",
    "CudaDriver",
    "DeviceKind",
    "Hardware",
    "HugePages",
    "Machine",
    "NvidiaGpu",
    "Provider",
]

DeviceKind = Literal["cpu", "gpu", "igpu", "accel", "meta"]


@dataclass(frozen=True)
class HugePages:
    """Pages larger than the processor's usual ones.

    Attributes:
        transparent: When the system uses them on its own: `always`, `madvise` or `never`; None if it cannot.
        page_bytes: Size of a reserved page; 0 if there are none.
        free: Number of reserved pages that no process uses.
    """

    transparent: str | None
    page_bytes: int
    free: int


@dataclass(frozen=True)
class Machine:
    """The machine this runs on.

    Attributes:
        system: Operating system and architecture.
        cpu: Name of the processor.
        n_cores: Number of cores this process may use, without the second threads of a core.
        memory_bytes: Memory of the machine, or of the control group if that is less; None when unknown.
        available_bytes: Memory that is available without swapping; None when unknown.
        features: Instruction sets for matrix products that the system has enabled, such as `AVX2` or `i8mm`; None when
            unknown.
        huge_pages: Huge pages; None when unknown.
    """

    system: str
    cpu: str
    n_cores: int
    memory_bytes: int | None
    available_bytes: int | None
    features: tuple[str, ...] | None = None
    huge_pages: HugePages | None = None


@dataclass(frozen=True)
class Backend:
    """One of ggml's backends, which drive its devices.

    Attributes:
        name: Name of the backend, such as `CUDA`, `Metal` or `CPU`.
        n_devices: Number of devices that it found.
    """

    name: str
    n_devices: int


@dataclass(frozen=True)
class ComputeDevice:
    """One of ggml's devices, on which llama.cpp computes.

    Attributes:
        name: ggml's name of the device, such as `CUDA0`, `Metal` or `CPU`.
        description: Name of the hardware, such as `NVIDIA GeForce RTX 4060 Laptop GPU`.
        kind: `gpu` has its own memory, `igpu` shares the machine's, `accel` helps the CPU, `meta` combines devices.
        backend: ggml's name of the backend that drives it, such as `CUDA`, `Metal` or `CPU`.
        free_bytes: Memory that is free now; 0 if the backend does not know.
        total_bytes: Memory of the device; 0 if the backend does not know.
    """

    name: str
    description: str
    kind: DeviceKind
    backend: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers, with which it computes.

    Attributes:
        name: ONNX Runtime's name of it, such as `CUDAExecutionProvider`.
        built_in: Whether the installed library was built with it.
        loads: Whether a session opened with it; a library may list a provider that cannot load.
        reason: Why it does not load, in words; empty if it does.
        remedy: What would make it load; None if nothing on this machine would.
    """

    name: str
    built_in: bool
    loads: bool
    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class NvidiaGpu:
    """One of the devices of NVIDIA's driver.

    Attributes:
        name: Name of the product.
        capability: Compute capability, such as (8, 9).
        total_bytes: Memory of the device.
        free_bytes: Free memory; None when unknown.
    """

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class CudaDriver:
    """NVIDIA's driver.

    Attributes:
        version: Version of the driver, such as `550.54.14`; None when unknown.
        cuda: Newest CUDA version that it runs, such as (12, 4); None if it does not say.
        gpus: Devices; empty if there are none, or if the driver fails.
        fault: Why it cannot be used, in words; None if it can.
    """

    version: str | None
    cuda: tuple[int, int] | None
    gpus: tuple[NvidiaGpu, ...]
    fault: str | None


@dataclass(frozen=True)
class Hardware:
    """All known facts about where a model can run.

    Attributes:
        machine: Processor and memory.
        backends: Backends of llama.cpp.
        backend_faults: Messages of backends that could not start.
        devices: Devices of llama.cpp, in ggml's order.
        providers: Execution providers of ONNX Runtime, the best first.
        cuda: NVIDIA's driver; None if it is not installed.
        n_nvidia_cards: Number of NVIDIA cards on the PCI bus, with or without a driver; 0 where the system cannot tell.
        cuda_compiler: Whether the CUDA toolkit's compiler is in the path.
    """

    machine: Machine
    backends: tuple[Backend, ...]
    backend_faults: tuple[str, ...]
    devices: tuple[ComputeDevice, ...]
    providers: tuple[Provider, ...]
    cuda: CudaDriver | None
    n_nvidia_cards: int = 0
    cuda_compiler: bool = False
