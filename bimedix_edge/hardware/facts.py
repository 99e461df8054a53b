"""What is said about hardware: one tree of plain data, filled in by `devices.inspect_hardware`.

    Hardware
    ├── machine: Machine                     processor, memory, huge pages
    ├── backends: Backend, ...               what llama.cpp was built with
    ├── devices: ComputeDevice, ...          what it can compute on
    ├── providers: Provider, ...             what ONNX Runtime can compute on
    └── cuda: CudaDriver | None              NVIDIA's driver, its version and devices

This imports nothing, so that every engine's door can state its part of it.
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
        transparent: when the system uses them by itself: `always`, `madvise` or `never`; None where it has none.
        page_bytes: of a reserved one; 0 where there are none.
        free: how many reserved ones nobody uses.
    """

    transparent: str | None
    page_bytes: int
    free: int


@dataclass(frozen=True)
class Machine:
    """The machine this runs on.

    Attributes:
        system: operating system and architecture.
        cpu: the processor's name.
        n_cores: processors this process may use, without the second threads of one core.
        memory_bytes: memory of the machine, or of the control group where that is less; None when unknown.
        available_bytes: what of it can be used without swapping; None when unknown.
        features: instruction sets that matter for the products, such as `AVX2` or `i8mm`, and that the system has
            enabled; None when unknown.
        huge_pages: None when unknown.
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
        name: such as `CUDA`, `Metal` or `CPU`.
        n_devices: that it found.
    """

    name: str
    n_devices: int


@dataclass(frozen=True)
class ComputeDevice:
    """One of ggml's devices, which is what llama.cpp computes on.

    Attributes:
        name: what ggml calls it, such as `CUDA0`, `Metal` or `CPU`.
        description: of the hardware, such as `NVIDIA GeForce RTX 4060 Laptop GPU`.
        kind: `gpu` has memory of its own, `igpu` shares the machine's, `accel` helps the CPU, `meta` is made of others.
        backend: ggml's name of what drives it, such as `CUDA`, `Metal` or `CPU`.
        free_bytes: memory that nobody uses at the moment; 0 where the backend does not know.
        total_bytes: memory; likewise.
    """

    name: str
    description: str
    kind: DeviceKind
    backend: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers, which is what it computes on.

    Attributes:
        name: what ONNX Runtime calls it, such as `CUDAExecutionProvider`.
        built_in: whether the installed library knows it.
        loads: whether a session was really opened with it; a library may know a provider that cannot load.
        reason: why it does not load, in words; empty where it does.
        remedy: what would change that; None where nothing here would.
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
        name: of the product.
        capability: its compute capability, such as (8, 9).
        total_bytes: of memory.
        free_bytes: that nobody uses; None when unknown.
    """

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class CudaDriver:
    """NVIDIA's driver.

    Attributes:
        version: its own, such as `550.54.14`; None when unknown.
        cuda: the newest CUDA that it runs, such as (12, 4); None where it does not say.
        gpus: its devices; empty where there are none, or it fails.
        fault: why it cannot be used, in words; None where it can.
    """

    version: str | None
    cuda: tuple[int, int] | None
    gpus: tuple[NvidiaGpu, ...]
    fault: str | None


@dataclass(frozen=True)
class Hardware:
    """All that is known about where a model can run.

    Attributes:
        machine: processor and memory.
        backends: of llama.cpp.
        backend_faults: what they said when they could not start, in words.
        devices: of llama.cpp, in ggml's order.
        providers: of ONNX Runtime, the best first.
        cuda: NVIDIA's driver; None where none is installed.
        n_nvidia_cards: on the PCI bus, whether or not a driver is installed; 0 where that cannot be asked.
        cuda_compiler: whether the CUDA toolkit's compiler is in the path.
    """

    machine: Machine
    backends: tuple[Backend, ...]
    backend_faults: tuple[str, ...]
    devices: tuple[ComputeDevice, ...]
    providers: tuple[Provider, ...]
    cuda: CudaDriver | None
    n_nvidia_cards: int = 0
    cuda_compiler: bool = False
