"""Finds, checks and registers the kernels: a plug-in for ggml, built with this package (see kernels/README.md).

The library is loaded by its absolute path and only if it is whole, was built for the llama-cpp-python that runs, and
computes what its scalar version computes. Otherwise llama.cpp's own kernels answer, and `Kernels.reason` says why.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.errors import HardwareError
from bimedix_edge.native import UnusableError, choose, load_library, verified

__all__ = [
    "AUTO",
    "CHOICES",
    "OFF",
    "STEM",
    "Kernels",
    "Quantizer",
    "int8_ops",
    "load_kernels",
    "load_quantizer",
    "read_bandwidth",
]

AUTO, OFF = "auto", "off"
CHOICES = (AUTO, OFF, "avx2", "avxvnni", "avx512vnni", "amx")
# name of the library's file, without its ending
STEM = "bimedix_edge_kernels"
# ggml keeps what is registered for the life of the process
_registered: list[ctypes.CDLL] = []


@dataclass(frozen=True)
class Kernels:
    """The kernels of the decoder's matrix products.

    Attributes:
        name: Name of our kernels, such as `avx512vnni`; None where llama.cpp's own compute.
        reason: Why these, in words.
    """

    name: str | None
    reason: str


def load_kernels(choice: str, version: str, register: Callable[[Path], bool]) -> Kernels:
    """Choose the kernels that this process uses from now on, and register them with ggml when it is the first time.

    Args:
        choice: One of `CHOICES`.
        version: Version of the installed llama-cpp-python.
        register: ggml's `ggml_backend_load`; returns whether it worked.

    Raises:
        HardwareError: The kernels of that name cannot be used on this machine.
    """
    if choice == OFF:
        for library in _registered:
            library.bimedix_edge_kernels_off()
        return Kernels(None, "switched off")
    try:
        library = _open(version)
        name = choose(library.bimedix_edge_kernels_choose, choice)
        if not _registered:
            _register(library, register)
            _registered.append(library)
        return Kernels(name, "the best for this processor" if choice == AUTO else "asked for")
    except UnusableError as error:
        if choice == AUTO:
            return Kernels(None, str(error))
        raise HardwareError(f"The kernels {choice} cannot be used here: {error}. Choose auto or off.") from error


def load_quantizer(version: str) -> Quantizer | None:
    """Return a quantizer with ggml's results, several times as fast, or None where it cannot be used.

    Args:
        version: Version of the installed llama-cpp-python.
    """
    try:
        library = _open(version)
    except UnusableError:
        return None
    address, integer = ctypes.c_void_p, ctypes.c_int
    library.bimedix_edge_quantize.argtypes = [integer, address, address, ctypes.c_longlong]
    return Quantizer(library)


class Quantizer:
    """ggml's quantizers for some types, a vector of blocks at a time; see kernels/quantize.cpp.

    Args:
        library: Our library, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def knows(self, kind: int) -> bool:
        """Return whether a ggml type can be written here."""
        return bool(self._library.bimedix_edge_quantizes(kind))

    def quantize(self, kind: int, source: int, target: int, n_values: int) -> bool:
        """Write blocks; ctypes lets go of Python's lock meanwhile.

        Args:
            kind: ggml type.
            source: Address of float32 values, all finite.
            target: Address of the blocks.
            n_values: Number of values, a multiple of the type's block.

        Returns:
            Whether it was done.
        """
        return bool(self._library.bimedix_edge_quantize(kind, source, target, n_values) == 0)


def read_bandwidth(n_threads: int, seconds: float) -> float | None:
    """Return how many bytes all threads together read from memory in a second, measured now.

    Args:
        n_threads: Threads that read.
        seconds: Approximate duration.

    Returns:
        The sustained rate of many passes over 256 MB, or more where a cache holds that. None before any kernels were
        loaded, or without memory for it.
    """
    if not _registered:
        return None
    function = _registered[0].bimedix_edge_kernels_read_bandwidth
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_double], ctypes.c_double
    return float(function(n_threads, seconds)) or None


def int8_ops(name: str, n_threads: int, seconds: float) -> float | None:
    """Return how many multiplications and additions of bytes an instruction set does in a second, measured now.

    Args:
        name: Name of kernels, such as `avx512vnni`.
        n_threads: Threads that compute.
        seconds: Approximate duration.

    Returns:
        The rate on registers alone, the best of many passes. None before any kernels were loaded, or where these cannot
        run.
    """
    if not _registered:
        return None
    function = _registered[0].bimedix_edge_kernels_int8_ops
    function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_int, ctypes.c_double], ctypes.c_double
    return float(function(name.encode(), n_threads, seconds)) or None


def _open(version: str) -> ctypes.CDLL:
    path, _ = verified(STEM)
    library = load_library(path)
    try:
        library.bimedix_edge_kernels_version.restype = ctypes.c_char_p
        built_for = library.bimedix_edge_kernels_version().decode()
    except AttributeError as error:
        raise UnusableError(f"{path.name} does not load ({error})") from error
    if built_for != version:
        raise UnusableError(f"they were built for llama-cpp-python {built_for}, and {version} is installed")
    return library


def _register(library: ctypes.CDLL, register: Callable[[Path], bool]) -> None:
    path, _ = verified(STEM)
    if not (register(path) and library.bimedix_edge_kernels_registered()):
        library.bimedix_edge_kernels_off()
        raise UnusableError("ggml refuses the plug-in")
