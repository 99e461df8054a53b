"""Asks NVIDIA's driver, through its own libraries, for its version, its CUDA version and its devices.

`nvidia-smi` is not run: it may be missing beside a working driver, and its output changes between versions.

Source: CUDA Driver API (`cuda.h`), NVML (`nvml.h`).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from bimedix_edge.hardware.facts import CudaDriver, NvidiaGpu

__all__ = ["Call", "DriverError", "count_cards", "inspect_driver", "open_driver"]

_WINDOWS = sys.platform == "win32"
_DRIVER, _NVML = ("nvcuda.dll", "nvml.dll") if _WINDOWS else ("libcuda.so.1", "libnvidia-ml.so.1")
_NAME_BYTES = 256
# PCI's number of the vendor, and its class of display controllers
_VENDOR, _DISPLAY = "0x10de", "0x03"
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_CAPABILITY = (75, 76)


Call = Callable[..., None]


class DriverError(Exception):
    """The driver refuses a call; callers in this package catch it."""


@functools.cache
def inspect_driver() -> CudaDriver | None:
    """Return the facts from NVIDIA's driver, asked once per process; None if it is not installed."""
    library = _load(_DRIVER)
    if library is None:
        return None
    nvml = _Nvml()
    try:
        driver = _Driver(library)
        gpus = tuple(driver.gpu(index, nvml) for index in range(driver.count()))
    except DriverError as error:
        return CudaDriver(nvml.version, _cuda_of(library), (), str(error))
    return CudaDriver(nvml.version, _cuda_of(library), gpus, None if gpus else "it finds no device")


def count_cards(root: Path = Path("/")) -> int:
    """Return how many NVIDIA cards Linux sees on the PCI bus, with or without a driver; 0 on other systems."""
    return sum(
        (device / "vendor").read_text().strip() == _VENDOR and (device / "class").read_text().startswith(_DISPLAY)
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _cuda_of(library: ctypes.CDLL) -> tuple[int, int] | None:
    version = ctypes.c_int()
    # this call works without a device
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def open_driver() -> Call:
    """Initialise the driver.

    Returns:
        A function that calls one of the driver's functions: it takes the name, then the arguments. It raises
        DriverError if the call fails.

    Raises:
        DriverError: There is no driver, or it cannot be initialised.
    """
    library = _load(_DRIVER)
    if library is None:
        raise DriverError("no NVIDIA driver is installed")
    return _Driver(library).call


class _Driver:
    """The driver, initialised.

    Raises:
        DriverError: The driver cannot be initialised.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.call("cuInit", 0)

    def count(self) -> int:
        """Return how many devices this process may see."""
        return self._integer("cuDeviceGetCount")

    def gpu(self, index: int, nvml: _Nvml) -> NvidiaGpu:
        """Return the facts about one device; no context is created, since that would take its memory."""
        device = self._integer("cuDeviceGet", index)
        name, place = (ctypes.create_string_buffer(_NAME_BYTES) for _ in range(2))
        self.call("cuDeviceGetName", name, _NAME_BYTES, device)
        self.call("cuDeviceGetPCIBusId", place, _NAME_BYTES, device)
        total = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        major, minor = (self._integer("cuDeviceGetAttribute", attribute, device) for attribute in _CAPABILITY)
        text = name.value.decode("utf-8", "replace")
        return NvidiaGpu(text, (major, minor), int(total.value), nvml.free_bytes(place.value))

    def call(self, function: str, *arguments: object) -> None:
        """Call a function that returns a status."""
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise DriverError(f"{function}: {(text.value or b'error').decode('utf-8', 'replace')} ({status})")

    def _integer(self, function: str, *arguments: int) -> int:
        value = ctypes.c_int()
        self.call(function, ctypes.byref(value), *arguments)
        return value.value


class _MemoryInfo(ctypes.Structure):
    """NVML's `nvmlMemory_t`, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Nvml:
    """The driver's management library, which knows its version, and free memory without a context on the device."""

    def __init__(self) -> None:
        library = _load(_NVML)
        self._library = library if library is not None and library.nvmlInit_v2() == 0 else None

    @property
    def version(self) -> str | None:
        """The driver's version; None when unknown."""
        text = ctypes.create_string_buffer(_NAME_BYTES)
        if self._library is None or self._library.nvmlSystemGetDriverVersion(text, _NAME_BYTES) != 0:
            return None
        return text.value.decode("ascii", "replace")

    def free_bytes(self, place: bytes) -> int | None:
        """Return the free memory of the device in a PCI slot; None when unknown."""
        device, memory = ctypes.c_void_p(), _MemoryInfo()
        if self._library is None or self._library.nvmlDeviceGetHandleByPciBusId_v2(place, ctypes.byref(device)) != 0:
            return None
        if self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
            return None
        return int(memory.free)
