"""The native libraries that are built with this package: found by name, and hashed before they are loaded."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path

import bimedix_edge

__all__ = ["UnusableError", "choose", "find_library", "load_library", "verified"]

_SUFFIXES = (".so", ".dylib", ".dll")
_MESSAGE_BYTES = 300


class UnusableError(Exception):
    """Why a library cannot be used, in words; what loads it makes that an answer or an error of ours."""


def find_library(stem: str) -> Path | None:
    """Return the path of a library that was built with this package, if there is one.

    Args:
        stem: its name, without `lib` and suffix.
    """
    for folder in bimedix_edge.__path__:
        for suffix in _SUFFIXES:
            for prefix in ("lib", ""):
                if (path := Path(folder).absolute() / f"{prefix}{stem}{suffix}").is_file():
                    return path
    return None


def verified(stem: str) -> tuple[Path, str]:
    """Return the path and the SHA-256 of a library that is what was built.

    Raises:
        UnusableError: it is missing or damaged.
    """
    path = find_library(stem)
    if path is None:
        raise UnusableError("the library is missing; install the package again")
    listed = path.with_name(f"{path.name}.sha256")
    try:
        expected = listed.read_text("ascii").split()[0]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, IndexError) as error:
        raise UnusableError(f"{listed.name} cannot be read; install the package again") from error
    if found != expected:
        raise UnusableError(f"{path.name} is damaged; install the package again")
    return path, found


def load_library(path: Path) -> ctypes.CDLL:
    """Load a library that was verified.

    Raises:
        UnusableError: it does not load.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UnusableError(f"{path.name} does not load ({error})") from error


def choose(function: Callable[[bytes, ctypes.Array[ctypes.c_char], int], int], choice: str) -> str:
    """Let a library choose an instruction set, and return its name.

    Args:
        function: takes a name or `auto`, and room for what it chose or why not; returns 0 if it did.
        choice: the name.

    Raises:
        UnusableError: it cannot be used here.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    if function(choice.encode(), message, _MESSAGE_BYTES):
        raise UnusableError(message.value.decode())
    return message.value.decode()
