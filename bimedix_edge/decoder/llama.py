"""llama-cpp-python and its ggml: the library, the back ends that it was built with, and its devices.

The only file of the runtime that imports the binding; `batches`, `sampler` and `decoder` import it from here.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimedix_edge.decoder.kernels import Kernels, load_kernels
from bimedix_edge.errors import DecoderError, HardwareError
from bimedix_edge.hardware.advice import build_command, missing_gpu_library
from bimedix_edge.hardware.facts import Backend, ComputeDevice, DeviceKind

# the structs of llama.h are passed by value and change between versions
PINNED_VERSION = "0.3.36"

try:
    import llama_cpp
    from llama_cpp import _ggml as llama_ggml
except (ImportError, OSError, RuntimeError) as error:  # its shared library or one that it needs is missing
    if (cause := missing_gpu_library(str(error))) is not None:
        raise HardwareError(
            f"llama-cpp-python does not load: it was built for a GPU, and {cause}. Install the driver or the toolkit "
            "that has it, or build it without: "
            f"{build_command(None, f'{platform.system()} {platform.machine()}', PINNED_VERSION)}"
        ) from error
    raise DecoderError(
        f"llama-cpp-python does not load ({error}). Install it again; this needs a C++ compiler."
    ) from error

__all__ = [
    "PINNED_VERSION",
    "backend_faults",
    "backends",
    "built_for_amx",
    "check_version",
    "compute_devices",
    "device_list",
    "forget_errors",
    "ggml",
    "last_error",
    "library_version",
    "llama_cpp",
    "open_kernels",
    "repacks",
    "start",
    "system_info",
]

_LOG_ERROR = 4
# in the order of ggml's enum ggml_backend_dev_type
_DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accel", "meta")
_recent_errors: collections.deque[str] = collections.deque(maxlen=4)


def _remember_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    # this package prints nothing: errors go into the message of an exception, other lines are dropped
    if level == _LOG_ERROR:
        _recent_errors.append(text.decode("utf-8", "replace").strip())


# kept for the life of the process, since llama.cpp keeps the pointer
_LOG_CALLBACK = llama_cpp.llama_log_callback(_remember_log)


def start() -> None:
    """Start llama.cpp, which prints nothing from then on.

    Raises:
        DecoderError: This program does not know the installed version.
    """
    check_version()
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def forget_errors() -> None:
    """Forget earlier errors of llama.cpp, before something is tried."""
    _recent_errors.clear()


def last_error() -> str:
    """Return the errors of llama.cpp since `forget_errors`, in words."""
    return "; ".join(_recent_errors) or "it gives no reason"


def library_version() -> str:
    """Return the installed version of llama-cpp-python."""
    return importlib.metadata.version("llama-cpp-python")


def open_kernels(choice: str) -> Kernels:
    """Choose the kernels of the decoders that are opened from now on.

    Raises:
        HardwareError: The kernels of that name cannot be used on this machine.
    """
    backend_faults()
    return load_kernels(choice, library_version(), _register)


def _register(path: Path) -> bool:
    return bool(ggml("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)(str(path).encode()))


def ggml(name: str, result: Any, *arguments: Any) -> Any:
    """Return one of ggml's functions with its types."""
    # by way of libllama, where the system searches what a library depends on: the binding opens ggml under its other
    # name, and where a wheel holds a copy instead of a link, that is a second ggml
    library = llama_ggml.libggml if sys.platform == "win32" else llama_cpp.llama_cpp._lib
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def backends() -> tuple[Backend, ...]:
    """Return the back ends that llama.cpp was built with, and those registered with it."""
    backend_faults()
    at = ggml("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = ggml("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    n_devices = ggml("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
    registries = [at(index) for index in range(ggml("ggml_backend_reg_count", ctypes.c_size_t)())]
    return tuple(Backend(name(registry).decode(), int(n_devices(registry))) for registry in registries)


@functools.cache
def backend_faults() -> tuple[str, ...]:
    """Return the errors of ggml's back ends that could not start; they appear on the first use of any."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    _recent_errors.clear()
    ggml("ggml_backend_reg_count", ctypes.c_size_t)()
    return tuple(_recent_errors)


def compute_devices() -> tuple[ComputeDevice, ...]:
    """Return ggml's devices, in its order, with the memory that it states.

    For the CPU it states that all memory of the machine is free.

    Source: `ggml-backend.h` of the pinned version.
    """
    backend_faults()
    at = ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return tuple(_compute_device(at(index)) for index in range(ggml("ggml_backend_dev_count", ctypes.c_size_t)()))


def _compute_device(device: int) -> ComputeDevice:
    address, text = ctypes.c_void_p, ctypes.c_char_p
    size = ctypes.POINTER(ctypes.c_size_t)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml("ggml_backend_dev_memory", None, address, size, size)(device, ctypes.byref(free), ctypes.byref(total))
    registry = ggml("ggml_backend_dev_backend_reg", address, address)(device)
    return ComputeDevice(
        name=ggml("ggml_backend_dev_name", text, address)(device).decode(),
        description=ggml("ggml_backend_dev_description", text, address)(device).decode("utf-8", "replace"),
        kind=_DEVICE_KINDS[ggml("ggml_backend_dev_type", ctypes.c_int, address)(device)],
        backend=ggml("ggml_backend_reg_name", text, address)(registry).decode(),
        free_bytes=int(free.value),
        total_bytes=int(total.value),
    )


def system_info() -> str:
    """Return llama.cpp's own line about the instruction sets it uses."""
    return str(llama_cpp.llama_print_system_info().decode())


def built_for_amx() -> bool:
    """Return whether llama.cpp was built for processors with AMX; its own AMX products are never used.

    GCC up to 12 assumes that `_tile_loadconfig` reads eight of its 64 bytes, and drops the writes to the others. ggml's
    AMX code then ends the process. A library does not say which compiler built it.
    """
    return "AMX_INT8 = 1" in system_info()


def repacks(*, kernels: bool) -> bool:
    """Return whether llama.cpp repacks weights when it loads them; with our kernels (`kernels`) it does not."""
    return not kernels and not built_for_amx()


def check_version() -> None:
    """Raise DecoderError unless the installed llama-cpp-python is the version whose structs this program knows."""
    if (version := library_version()) != PINNED_VERSION:
        raise DecoderError(
            f"llama-cpp-python {version} is installed, and this program knows the structs of {PINNED_VERSION}. "
            f"Run `pip install llama-cpp-python=={PINNED_VERSION}`."
        )


def device_list(names: Sequence[str]) -> Any:
    """Return ggml's devices of these names, and a null after the last; an empty list keeps llama.cpp on the CPU.

    Raises:
        HardwareError: There is no device of such a name.
    """
    by_name = ggml("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    devices = [by_name(name.encode()) for name in names]
    for name, device in zip(names, devices, strict=True):
        if not device:
            raise HardwareError(
                f"llama.cpp does not have the device {name} any more. Run `bimedix-edge doctor` for a list."
            )
    return (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
