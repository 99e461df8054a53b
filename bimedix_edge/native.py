"""Finds the native libraries of this package by name, and verifies their hashes before it loads them."""

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
    """Why a library cannot be used, as part of a sentence; callers put it into their own message."""


def find_library(stem: str) -> Path | None:
    """Return the path of a library of this package; None if it was not built.

    Args:
        stem: Name of the library, without `lib` and suffix.
    """
    for folder in bimedix_edge.__path__:
        for suffix in _SUFFIXES:
            for prefix in ("lib", ""):
                if (path := Path(folder).absolute() / f"{prefix}{stem}{suffix}").is_file():
                    return path
    return None


def verified(stem: str) -> tuple[Path, str]:
    """Return the path and the SHA-256 of a library whose bytes are those that were built.

    Raises:
        UnusableError: The library is missing or damaged.
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
    """Load a verified library.

    Raises:
        UnusableError: The library does not load.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UnusableError(f"{path.name} does not load ({error})") from error


def choose(function: Callable[[bytes, ctypes.Array[ctypes.c_char], int], int], choice: str) -> str:
    """Let a library choose an instruction set, and return its name.

    Args:
        function: Function of the library. It takes a name or `auto` and a buffer, writes the chosen name or a reason
            into the buffer, and returns 0 if it chose.
        choice: Name of an instruction set, or `auto`.

    Raises:
        UnusableError: This machine cannot use it.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    if function(choice.encode(), message, _MESSAGE_BYTES):
        raise UnusableError(message.value.decode())
    return message.value.decode()
