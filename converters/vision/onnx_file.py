"""ONNX models written without holding their weights: the graph from onnx.helper, the tensors streamed after it.

An ONNX file is one protobuf message, and protobuf's own serializer needs the whole message in memory, twice. The wire
format is simple enough to stream the long fields: a field is a varint tag, a varint length, and its bytes. Readers
accept the fields in any order.

Source: protobuf's encoding guide; `onnx.proto` (field numbers below), IR version 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bimedix_edge.converters.parts import Part, whole_part
from bimedix_edge.errors import CheckpointError

__all__ = ["CONTRIB", "MAX_MODEL_BYTES", "Graph", "ModelDescription", "Weight", "model_bytes", "model_parts", "varint"]

IR_VERSION = 8
# the domain of ONNX Runtime's own operators
CONTRIB = "com.microsoft"
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2
# protobuf's parsers take no message of 2 GiB or more
MAX_MODEL_BYTES = (1 << 31) - 1
_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT64: "<i8",
    TensorProto.INT8: "<i1",
}


@dataclass(frozen=True)
class Weight:
    """One initializer of a graph.

    Attributes:
        read: Returns the values in `shape`: int8 for rounded matrices, int64 for the shapes of Reshape, float32
            otherwise.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]
    type: int = TensorProto.FLOAT

    @property
    def size_bytes(self) -> int:
        """Return the size of its data."""
        return prod(self.shape) * np.dtype(_DTYPES[self.type]).itemsize


class Graph:
    """A graph under construction: nodes in order, weights by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Weight] = {}

    def add(self, op: str, name: str, inputs: list[str], n_outputs: int = 1, **attributes: Any) -> str:
        """Append a node and return its (first) output, which has the node's name."""
        outputs = [name, *(f"{name}.{index}" for index in range(1, n_outputs))]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return name

    def weight(
        self, name: str, shape: tuple[int, ...], read: Callable[[], NDArray[Any]], kind: int = TensorProto.FLOAT
    ) -> str:
        """Declare a weight, float32 by default, and return its name."""
        self.weights[name] = Weight(name, shape, read, kind)
        return name

    def integers(self, name: str, values: tuple[int, ...]) -> str:
        """Declare an int64 constant, such as a shape, and return its name."""
        array = np.array(values, np.int64)
        self.weights[name] = Weight(name, array.shape, lambda: array, TensorProto.INT64)
        return name


@dataclass(frozen=True)
class ModelDescription:
    """What a model file says besides its graph.

    Attributes:
        name: Name of the graph.
        opset: Opset of the default domain.
        input_shape, output_shape: Name and shape of the one float32 input and output.
        producer: Program that writes the file.
        metadata: Properties of the model.
        functions: Operators that the model defines.
    """

    name: str
    opset: int
    input_shape: tuple[str, tuple[int, ...]]
    output_shape: tuple[str, tuple[int, ...]]
    producer: str
    metadata: dict[str, str]
    functions: Sequence[onnx.FunctionProto] = ()


def model_parts(graph: Graph, about: ModelDescription) -> list[Part]:
    """Check a graph and return its file as parts: the graph, then each weight.

    Args:
        graph: Nodes and weights.
        about: What else the file says.

    Returns:
        Parts whose steps raise CheckpointError if a weight is NaN or infinite.

    Raises:
        CheckpointError: The model is too large for one file.
    """
    weights = list(graph.weights.values())
    shapes = (about.input_shape, about.output_shape)
    ends = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in shapes]
    # the checker sees the weights as inputs: it needs their types and shapes, not their values
    stand_ins = [helper.make_tensor_value_info(weight.name, weight.type, weight.shape) for weight in weights]
    checked = _model(helper.make_graph(graph.nodes, about.name, [ends[0], *stand_ins], ends[1:]), about)
    onnx.checker.check_model(checked, full_check=True)
    model = _model(helper.make_graph(graph.nodes, about.name, ends[:1], ends[1:]), about)
    size = model_bytes(graph) + model.ByteSize()
    if size > MAX_MODEL_BYTES:
        raise CheckpointError(
            f"The vision tower needs {size} bytes, but one ONNX file holds less than 2 GiB. "
            "Use a checkpoint with CLIP ViT-L/14."
        )
    return _parts(model, weights)


def model_bytes(graph: Graph) -> int:
    """Return the approximate size of the file."""
    return sum(weight.size_bytes + 256 for weight in graph.weights.values()) + 512 * len(graph.nodes)


def _model(graph: onnx.GraphProto, about: ModelDescription) -> onnx.ModelProto:
    domains = {node.domain for node in graph.node} | {each.domain for each in about.functions}
    domains |= {used.domain for each in about.functions for used in each.opset_import}
    others = [helper.make_opsetid(domain, 1) for domain in sorted(domains - {""})]
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", about.opset), *others],
        ir_version=IR_VERSION,
        producer_name=about.producer,
        functions=about.functions,
    )
    helper.set_model_props(model, dict(sorted(about.metadata.items())))
    return model


def _parts(model: onnx.ModelProto, weights: list[Weight]) -> list[Part]:
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    heads = [_tensor_head(weight) for weight in weights]
    size = len(graph) + sum(len(head) + weight.size_bytes for head, weight in zip(heads, weights, strict=True))
    first = model.SerializeToString(deterministic=True) + _field(_MODEL_GRAPH, size) + graph
    return [whole_part("graph", first), *map(_weight_part, heads, weights)]


def _weight_part(head: bytes, weight: Weight) -> Part:
    return Part(
        weight.name, len(head) + weight.size_bytes, lambda: [lambda: memoryview(head), partial(_values, weight)]
    )


def _tensor_head(weight: Weight) -> bytes:
    """Return everything of a graph's `initializer` field before the values."""
    tensor = TensorProto(name=weight.name, dims=weight.shape, data_type=weight.type)
    body = tensor.SerializeToString(deterministic=True) + _field(_TENSOR_RAW_DATA, weight.size_bytes)
    head: bytes = _field(_GRAPH_INITIALIZER, len(body) + weight.size_bytes) + body
    return head


def _values(weight: Weight) -> memoryview:
    with np.errstate(over="ignore"):  # values too large for float16 become infinite, and are refused below
        values: NDArray[Any] = np.asarray(weight.read(), np.dtype(_DTYPES[weight.type]), order="C")
    if values.shape != weight.shape:
        raise ValueError(f"{weight.name} was declared {weight.shape} and is {values.shape}")
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{weight.name} of the vision tower has NaN or infinity"
            f"{' in float16' if weight.type == TensorProto.FLOAT16 else ''}. Download the checkpoint again, or ask its "
            "authors."
        )
    return values.reshape(-1).view(np.uint8).data


def _field(number: int, length: int) -> bytes:
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(length)


def varint(value: int) -> bytes:
    """Return protobuf's encoding of a number: seven bits a byte, the lowest first."""
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
