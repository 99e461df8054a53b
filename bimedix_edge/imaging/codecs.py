"""The DICOM transfer syntaxes that can be decoded here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["GPL_COMMAND", "Codec", "codecs"]

GPL_COMMAND = "pip install 'bimedix-edge[dicom-gpl]'"


@dataclass(frozen=True)
class Codec:
    """One transfer syntax.

    Attributes:
        uid: Its UID in the standard, PS3.5, chapter 10.
        name: Its name in the standard.
        available: Whether it can be decoded.
        missing: The part of it that cannot be decoded, in words; empty if all can.
    """

    uid: str
    name: str
    available: bool
    missing: str


def codecs() -> tuple[Codec, ...]:
    """Return all transfer syntaxes for pictures that pydicom knows."""
    # pydicom imports requests, if installed, for downloads of its own, and requests imports a module that opens a
    # socket at once, to test for IPv6
    with _without("requests"):
        from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS
        from pydicom.uid import UID, JPEGExtended12Bit

    twelve_bit = importlib.util.find_spec("libjpeg") is not None
    found = []
    for uid, (decoder, _) in sorted(_PIXEL_DATA_DECODERS.items()):
        missing = "" if decoder.is_available else "; ".join(decoder.missing_dependencies) or "no decoder is installed"
        if uid == JPEGExtended12Bit and decoder.is_available and not twelve_bit:
            missing = "12 bits"
        found.append(Codec(str(uid), UID(uid).name, decoder.is_available, missing))
    return tuple(found)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Make imports of a module fail inside the block, unless it is loaded already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # None makes the import fail
    try:
        yield
    finally:
        del sys.modules[module]
