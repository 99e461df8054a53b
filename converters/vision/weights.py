"""Four ways to multiply by a weight in the vision graph: float32, float16, int8, and weights of 8 bits only.

`int8` rounds weights to 8 bits with one scale for each column, and activations to 8 bits with one scale for the tensor,
computed for each image (`DynamicQuantizeLinear`); ONNX Runtime fuses the five nodes into one kernel of integer
products. One outlier among the activations makes all others coarse. `int8_weights` has the same weights and float32
activations; the runtime stops ONNX Runtime from rounding these in blocks of 32 (`MatMulNBits`).

`float16` is for devices that multiply it faster: weights, and activations inside a block, are float16. The residual
stream, the norms and both ends of the graph stay float32 (see `graph.py`). A CPU computes it in float32, no faster.

Source: ONNX operators MatMulInteger, DynamicQuantizeLinear, DequantizeLinear, opset 17; the sequence of nodes is that
of ONNX Runtime's `quantize_dynamic`, which its `DynamicQuantizeMatMul` fusion looks for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bimedix_edge.converters.vision.onnx_file import Graph

__all__ = [
    "Matrix",
    "VisionChoice",
    "VisionWeights",
    "column_scales",
    "float_type",
    "product",
    "round_to_int8",
    "rounded_weight",
    "tried_weights",
]

VisionWeights = Literal["float32", "float16", "int8", "int8_weights"]
VisionChoice: TypeAlias = VisionWeights | Literal["auto"]
# without float16, which is for devices only
_TRIED: tuple[VisionWeights, ...] = ("int8", "int8_weights", "float32")
_LARGEST = 127


@dataclass(frozen=True)
class Matrix:
    """A weight of the graph before it is rounded.

    Attributes:
        name: Name in the graph.
        shape: K, m.
        read: Returns the weight as float32 (k, m).
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], NDArray[np.float32]]


def product(graph: Graph, kind: VisionWeights, name: str, hidden: str, weight: Matrix) -> str:
    """Add hidden · weight to a graph and return its output.

    Args:
        graph: Graph under construction.
        kind: How the weight is stored and multiplied.
        name: Name of the output.
        hidden: float32 (n, k), or float16 if the weight is.
        weight: The weight.
    """
    if kind in ("float32", "float16"):
        stored = graph.weight(weight.name, weight.shape, weight.read, float_type(kind))
        return graph.add("MatMul", name, [hidden, stored])
    rounded, scale = rounded_weight(graph, weight)
    if kind == "int8_weights":
        restored = graph.add("DequantizeLinear", f"{weight.name}.restored", [rounded, scale], axis=1)
        return graph.add("MatMul", name, [hidden, restored])
    integers = _quantized(graph, hidden)
    sums = graph.add("MatMulInteger", f"{name}.sums", [integers, rounded, f"{integers}.2"])
    floats = graph.add("Cast", f"{name}.floats", [sums], to=TensorProto.FLOAT)
    scales = graph.add("Mul", f"{name}.scales", [f"{integers}.1", scale])
    return graph.add("Mul", name, [floats, scales])


def rounded_weight(graph: Graph, weight: Matrix) -> tuple[str, str]:
    """Declare a rounded weight, int8 (k, m), and its scales, float32 (m,); return both names."""
    pair = _Pair(weight.read)
    scale = graph.weight(f"{weight.name}.scale", weight.shape[1:], pair.scales)
    return graph.weight(f"{weight.name}.int8", weight.shape, pair.rounded, TensorProto.INT8), scale


def tried_weights(choice: VisionChoice) -> tuple[VisionWeights, ...]:
    """Return the weights that a conversion tries, in this order."""
    return _TRIED if choice == "auto" else (choice,)


def float_type(kind: VisionWeights) -> int:
    """Return ONNX's type of the values inside a block that are not rounded to integers."""
    return int(TensorProto.FLOAT16 if kind == "float16" else TensorProto.FLOAT)


def _quantized(graph: Graph, hidden: str) -> str:
    """Round activations once for all weights they are multiplied by."""
    name = f"{hidden}.int8"
    if any(node.name == name for node in graph.nodes):
        return name
    return graph.add("DynamicQuantizeLinear", name, [hidden], n_outputs=3)


class _Pair:
    """A rounded weight and its scales: written one after the other, so read and computed once for both.

    Args:
        read: Returns the weight as float32 (k, m).
    """

    def __init__(self, read: Callable[[], NDArray[np.float32]]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._waiting: NDArray[np.int8] | None = None

    def scales(self) -> NDArray[np.float32]:
        """Return the scales, float32 (m,), and keep the rounded weight for the next call of `rounded`."""
        with self._lock:
            weight = self._read()
            scales = column_scales(weight)
            self._waiting = round_to_int8(weight, scales)
            return scales

    def rounded(self) -> NDArray[np.int8]:
        """Return the rounded weight, int8 (k, m)."""
        with self._lock:
            # a conversion that was interrupted between the two has the scales on the disk already
            if self._waiting is None:
                weight = self._read()
                return round_to_int8(weight, column_scales(weight))
            waiting, self._waiting = self._waiting, None
            return waiting


def column_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scale of each column of a weight, float32 (k, m) to float32 (m,)."""
    largest = np.abs(weight).max(axis=0)
    # the scale of a column of zeros is arbitrary; NaN and infinity stay, so that the writer names the weight
    scales: NDArray[np.float32] = np.where(largest == 0, 1, largest / np.float32(_LARGEST)).astype(np.float32)
    return scales


def round_to_int8(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return a weight divided by the scales of its columns and rounded, int8 (k, m)."""
    with np.errstate(invalid="ignore"):
        rounded: NDArray[np.int8] = np.rint(weight / scales).astype(np.int8)
    return rounded
