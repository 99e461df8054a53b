"""llama-cpp-python and its ggml: the library itself, what it was built with, and what it can compute on.

The only file of the runtime that imports the binding; `batches`, `sampler` and `decoder` have it from here.
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
            f"Expected llama-cpp-python to load, but it was built for a GPU and {cause}; install the driver or the "
            "toolkit that has it, or build it without: "
            f"{build_command(None, f'{platform.system()} {platform.machine()}', PINNED_VERSION)}"
        ) from error
    raise DecoderError(
        f"Expected llama-cpp-python to load, but it fails ({error}); install it again, with a C++ compiler at hand."
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
    # the library prints nothing: errors are kept for the message of the exception, the rest is dropped
    if level == _LOG_ERROR:
        _recent_errors.append(text.decode("utf-8", "replace").strip())


# kept for the life of the process, since llama.cpp keeps the pointer
_LOG_CALLBACK = llama_cpp.llama_log_callback(_remember_log)


def start() -> None:
    """Start llama.cpp, which prints nothing from then on.

    Raises:
        DecoderError: it is another version than this program knows.
    """
    check_version()
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def forget_errors() -> None:
    """Forget what llama.cpp has complained of, before something is tried."""
    _recent_errors.clear()


def last_error() -> str:
    """Return what llama.cpp has complained of since, in words."""
    return "; ".join(_recent_errors) or "it gives no reason"


def library_version() -> str:
    """Return the installed version of llama-cpp-python."""
    return importlib.metadata.version("llama-cpp-python")


def open_kernels(choice: str) -> Kernels:
    """Choose the kernels for the decoders that are made from now on.

    Raises:
        HardwareError: certain kernels were asked for, and they cannot be used here.
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
    """Return what llama.cpp was built with, and what was registered with it."""
    backend_faults()
    at = ggml("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = ggml("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    n_devices = ggml("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
    registries = [at(index) for index in range(ggml("ggml_backend_reg_count", ctypes.c_size_t)())]
    return tuple(Backend(name(registry).decode(), int(n_devices(registry))) for registry in registries)


@functools.cache
def backend_faults() -> tuple[str, ...]:
    """Return what ggml's backends said when they could not start, the first time any of them is asked for."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    _recent_errors.clear()
    ggml("ggml_backend_reg_count", ctypes.c_size_t)()
    return tuple(_recent_errors)


def compute_devices() -> tuple[ComputeDevice, ...]:
    """Return what ggml can compute on, in its order, with the memory that it states.

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
    """Tell whether llama.cpp was built for processors with AMX; its products by AMX are never used.

    GCC up to 12 takes `_tile_loadconfig` to read eight of its 64 bytes and drops what was written to the others:
    compiled so, ggml's AMX ends the process. Which compiler built a library cannot be asked.
    """
    return "AMX_INT8 = 1" in system_info()


def repacks(*, kernels: bool) -> bool:
    """Tell whether llama.cpp rearranges weights when it loads them; with our kernels (`kernels`) it does not."""
    return not kernels and not built_for_amx()


def check_version() -> None:
    """Raise DecoderError unless the installed llama-cpp-python is the one whose structures this program knows."""
    if (version := library_version()) != PINNED_VERSION:
        raise DecoderError(
            f"Expected llama-cpp-python {PINNED_VERSION}, whose structures this program knows, but {version} is "
            f"installed; run `pip install llama-cpp-python=={PINNED_VERSION}`."
        )


def device_list(names: Sequence[str]) -> Any:
    """Return ggml's devices of these names, and a null after the last; none at all keeps llama.cpp from choosing some.

    Raises:
        HardwareError: there is no device of such a name.
    """
    by_name = ggml("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    devices = [by_name(name.encode()) for name in names]
    for name, device in zip(names, devices, strict=True):
        if not device:
            raise HardwareError(
                f"Expected the device {name}, but llama.cpp does not have it any more; see `bimedix-edge doctor`."
            )
    return (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
