"""Finds, checks and registers the kernels: a plug-in for ggml, built with this package (see kernels/README.md).

The library is loaded by its absolute path and only if it is whole, was built for the llama-cpp-python that runs, and
computes what its scalar version computes. Otherwise llama.cpp's own kernels answer, and `Kernels.reason` says why.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bimedix_edge
from bimedix_edge.errors import HardwareError

__all__ = [
    "AUTO",
    "CHOICES",
    "OFF",
    "Kernels",
    "Quantizer",
    "find_library",
    "int8_ops",
    "load_kernels",
    "load_quantizer",
    "read_bandwidth",
]

AUTO, OFF = "auto", "off"
CHOICES = (AUTO, OFF, "avx2", "avxvnni", "avx512vnni", "amx")
_STEM = "bimedix_edge_kernels"
_SUFFIXES = (".so", ".dylib", ".dll")
_MESSAGE_BYTES = 300
# ggml keeps what is registered for the life of the process
_registered: list[ctypes.CDLL] = []


@dataclass(frozen=True)
class Kernels:
    """What computes the decoder's matrix products.

    Attributes:
        name: of our kernels, such as `avx512vnni`; None where llama.cpp's own compute.
        reason: why, in words.
    """

    name: str | None
    reason: str


class _UnusableError(Exception):
    """Why the library cannot be used; never leaves this file."""


def find_library() -> Path | None:
    """Return the path of the library that was built with this package, if there is one."""
    for folder in bimedix_edge.__path__:
        for suffix in _SUFFIXES:
            for prefix in ("lib", ""):
                if (path := Path(folder).absolute() / f"{prefix}{_STEM}{suffix}").is_file():
                    return path
    return None


def load_kernels(choice: str, version: str, register: Callable[[Path], bool]) -> Kernels:
    """Choose the kernels that this process uses from now on, and register them with ggml when it is the first time.

    Args:
        choice: one of `CHOICES`.
        version: of the installed llama-cpp-python.
        register: ggml's `ggml_backend_load`, which says whether it worked.

    Raises:
        HardwareError: certain kernels were asked for, and they cannot be used here.
    """
    if choice == OFF:
        for library in _registered:
            library.bimedix_edge_kernels_off()
        return Kernels(None, "switched off")
    try:
        library = _open(version)
        name = _choose(library, choice)
        if not _registered:
            _register(library, register)
            _registered.append(library)
        return Kernels(name, "the best for this processor" if choice == AUTO else "asked for")
    except _UnusableError as error:
        if choice == AUTO:
            return Kernels(None, str(error))
        raise HardwareError(
            f"Expected the kernels {choice}, but they cannot be used here: {error}; choose auto or off."
        ) from error


def load_quantizer(version: str) -> Quantizer | None:
    """Return what quantizes as ggml does, several times as fast, or None where it cannot be used.

    Args:
        version: of the installed llama-cpp-python.
    """
    try:
        library = _open(version)
    except _UnusableError:
        return None
    address, integer = ctypes.c_void_p, ctypes.c_int
    library.bimedix_edge_quantize.argtypes = [integer, address, address, ctypes.c_longlong]
    return Quantizer(library)


class Quantizer:
    """ggml's quantizers for some types, a vector of blocks at a time; see kernels/quantize.cpp.

    Args:
        library: ours, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def knows(self, kind: int) -> bool:
        """Return whether a ggml type can be written here."""
        return bool(self._library.bimedix_edge_quantizes(kind))

    def quantize(self, kind: int, source: int, target: int, n_values: int) -> bool:
        """Write blocks; ctypes lets go of Python's lock meanwhile.

        Args:
            kind: a ggml type.
            source: the address of float32 values, all finite.
            target: where the blocks go.
            n_values: a multiple of the type's block.

        Returns:
            Whether it was done.
        """
        return bool(self._library.bimedix_edge_quantize(kind, source, target, n_values) == 0)


def read_bandwidth(n_threads: int, seconds: float) -> float | None:
    """Return how many bytes all threads together read from memory in a second, measured now.

    Args:
        n_threads: how many read.
        seconds: about how long this takes.

    Returns:
        What lasts over many passes over 256 MB, or more where a cache holds that; None before any kernels were loaded,
        or where there is no memory for it.
    """
    if not _registered:
        return None
    function = _registered[0].bimedix_edge_kernels_read_bandwidth
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_double], ctypes.c_double
    return float(function(n_threads, seconds)) or None


def int8_ops(name: str, n_threads: int, seconds: float) -> float | None:
    """Return how many multiplications and additions of bytes an instruction set does in a second, measured now.

    Args:
        name: of kernels, such as `avx512vnni`.
        n_threads: how many compute.
        seconds: about how long this takes.

    Returns:
        What is reached on registers alone, the best of many passes; None before any kernels were loaded, or where these
        cannot run.
    """
    if not _registered:
        return None
    function = _registered[0].bimedix_edge_kernels_int8_ops
    function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_int, ctypes.c_double], ctypes.c_double
    return float(function(name.encode(), n_threads, seconds)) or None


def _path() -> Path:
    path = find_library()
    if path is None:
        raise _UnusableError("the library is missing; install the package again")
    listed = path.with_name(f"{path.name}.sha256")
    try:
        expected = listed.read_text("ascii").split()[0]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, IndexError) as error:
        raise _UnusableError(f"{listed.name} cannot be read; install the package again") from error
    if found != expected:
        raise _UnusableError(f"{path.name} is damaged; install the package again")
    return path


def _open(version: str) -> ctypes.CDLL:
    path = _path()
    try:
        library = ctypes.CDLL(str(path))
        library.bimedix_edge_kernels_version.restype = ctypes.c_char_p
        built_for = library.bimedix_edge_kernels_version().decode()
    except (OSError, AttributeError) as error:
        raise _UnusableError(f"{path.name} does not load ({error})") from error
    if built_for != version:
        raise _UnusableError(f"they were built for llama-cpp-python {built_for}, and {version} is installed")
    return library


def _choose(library: ctypes.CDLL, choice: str) -> str:
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    if library.bimedix_edge_kernels_choose(choice.encode(), message, _MESSAGE_BYTES):
        raise _UnusableError(message.value.decode())
    return message.value.decode()


def _register(library: ctypes.CDLL, register: Callable[[Path], bool]) -> None:
    if not (register(_path()) and library.bimedix_edge_kernels_registered()):
        library.bimedix_edge_kernels_off()
        raise _UnusableError("ggml refuses the plug-in")
