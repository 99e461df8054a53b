"""The image encoder's kernels: operators for ONNX Runtime, built with this package (see kernels/README.md).

A graph with int8 weights calls functions that it defines itself (`converters/vision/functions.py`). Our kernels compute
them in a session with our operators; in any other, ONNX Runtime's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.native import UnusableError, choose, load_library, verified

__all__ = ["STEM", "VisionKernels", "choose_vision_kernels"]

# name of the library's file, without its ending
STEM = "bimedix_edge_vision"
_AUTO, _OFF = "auto", "off"
# meaning of the setting for the decoder's kernels here: the best, the ones with tiles, the best without; on AVX2 and
# AVX-VNNI, ONNX Runtime computes
_MEANING = {_AUTO: "auto", "amx": "amx", "avx512vnni": "vectors"}


@dataclass(frozen=True)
class VisionKernels:
    """The kernels of an int8 image encoder.

    Attributes:
        name: Name of our kernels, such as `avx512bf16`; None where ONNX Runtime's own compute.
        reason: Why these, in words.
        library: Library to register with a session before it is opened; None without a name.
        identity: Name and the library's SHA-256, on which results depend; empty without a name.
    """

    name: str | None
    reason: str
    library: Path | None = None
    identity: str = ""


def choose_vision_kernels(choice: str) -> VisionKernels:
    """Choose the kernels of the sessions that are opened from now on.

    Args:
        choice: Setting for the decoder's kernels, one of `decoder.kernels.CHOICES`. The decoder refuses kernels that
            this machine cannot run.
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
