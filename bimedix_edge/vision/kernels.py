"""The image encoder's kernels: operators for ONNX Runtime, built with this package (see kernels/README.md).

A graph with int8 weights calls functions that it defines itself (`converters/vision/functions.py`); a session that our
operators are registered with computes these by our kernels, another one by ONNX Runtime's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.native import UnusableError, choose, load_library, verified

__all__ = ["STEM", "VisionKernels", "choose_vision_kernels"]

# of the library's file
STEM = "bimedix_edge_vision"
_AUTO, _OFF = "auto", "off"
# what the setting for the decoder's kernels means here: the best, that with tiles, the best without; AVX2 and AVX-VNNI
# are left to ONNX Runtime
_MEANING = {_AUTO: "auto", "amx": "amx", "avx512vnni": "vectors"}


@dataclass(frozen=True)
class VisionKernels:
    """What computes an int8 image encoder.

    Attributes:
        name: of our kernels, such as `avx512bf16`; None where ONNX Runtime's own compute.
        reason: why, in words.
        library: to be registered with a session before it is opened; None where there is no name.
        identity: of the computation, the name and the library's SHA-256; empty where there is no name.
    """

    name: str | None
    reason: str
    library: Path | None = None
    identity: str = ""


def choose_vision_kernels(choice: str) -> VisionKernels:
    """Choose the kernels of the sessions that are opened from now on.

    Args:
        choice: of the decoder's kernels, one of `kernels.CHOICES`; who names some that are not here is told so there.
    """
    if choice == _OFF:
        return VisionKernels(None, "switched off")
    if (name := _MEANING.get(choice)) is None:
        return VisionKernels(None, f"there are none for {choice}")
    try:
        path, sha256 = verified(STEM)
        chosen = choose(load_library(path).bimedix_edge_vision_choose, name)
    except (UnusableError, AttributeError) as error:
        return VisionKernels(None, str(error))
    why = "the best for this processor" if choice == _AUTO else "asked for"
    return VisionKernels(chosen, why, path, f"{chosen} {sha256}")
