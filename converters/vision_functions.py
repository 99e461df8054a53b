"""The vision graph's operators of our own: functions of standard operators, for which kernels/vision has kernels.

A model that calls a function brings its definition. ONNX Runtime takes a kernel registered under the function's name,
and puts the definition in its place where there is none: the file is an ordinary ONNX model, and needs nothing of ours.

    Int8Linear(x, weight, scale, bias)               y = x · w + bias
    Int8LinearSilu(x, weight, scale, bias)           y / (1 + exp(-y)) of that
    Int8LinearAdd(x, weight, scale, bias, residual)  and the sum with what came before
    Attention(q, k, v; num_heads)                    every token to every token: (T, C) each

x, float32 (T, K), is rounded to 8 bits by one scale and one zero point for the whole tensor, found for each image
(`DynamicQuantizeLinear`). The weight, int8 (K, N) with a scale a column, is stored as (N / 64, K / 4, 64, 4): sixteen
columns by four rows are one vector of 512 bits, sixteen of these one tile of AMX's. ONNX Runtime turns it back once, at
load, where the definition is used.

Source: ONNX IR, "Functions"; ONNX operators of opset 17; ONNX Runtime `ContribOperators.md`, version 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper

from bimedix_edge.converters.onnx_file import CONTRIB

__all__ = [
    "ATTENTION",
    "DOMAIN",
    "LINEAR",
    "LINEAR_ADD",
    "LINEAR_SILU",
    "has_heads",
    "is_packable",
    "packed",
    "vision_functions",
]

DOMAIN = "bimedix_edge"
LINEAR, LINEAR_SILU, LINEAR_ADD, ATTENTION = "Int8Linear", "Int8LinearSilu", "Int8LinearAdd", "Attention"
_COLUMNS, _GROUP, _TILE_BYTES = 64, 4, 64
_MOST_HEAD_SIZE = 128
# sums of so many products of bytes fit into 32 bits
_MOST_ROWS = 65536


def is_packable(rows: int, columns: int) -> bool:
    """Return whether a weight (rows, columns) of x · w can be stored as vectors and tiles."""
    return rows % _TILE_BYTES == 0 and rows <= _MOST_ROWS and columns % _COLUMNS == 0


def has_heads(n_embd: int, n_head: int) -> bool:
    """Return whether the kernels take such heads."""
    size, rest = divmod(n_embd, n_head)
    return rest == 0 and size % 32 == 0 and size <= _MOST_HEAD_SIZE


def packed(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return a weight (k, n) as (n / 64, k / 4, 64, 4)."""
    rows, columns = weight.shape
    grouped = weight.reshape(rows // _GROUP, _GROUP, columns // _COLUMNS, _COLUMNS)
    return np.ascontiguousarray(grouped.transpose(2, 0, 3, 1))


def vision_functions(opset: int) -> list[onnx.FunctionProto]:
    """Return the definitions.

    Args:
        opset: of the default domain.
    """
    silu = [helper.make_node("Sigmoid", ["sum"], ["gate"]), helper.make_node("Mul", ["sum", "gate"], ["y"])]
    add = [helper.make_node("Add", ["residual", "sum"], ["y"])]
    return [
        _function(LINEAR, ["x", "weight", "scale", "bias"], _linear("y"), opset, "shape"),
        _function(LINEAR_SILU, ["x", "weight", "scale", "bias"], [*_linear("sum"), *silu], opset, "shape"),
        _function(LINEAR_ADD, ["x", "weight", "scale", "bias", "residual"], [*_linear("sum"), *add], opset, "shape"),
        _function(ATTENTION, ["q", "k", "v"], _attention(), opset, "num_heads"),
    ]


def _function(
    name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto], opset: int, attribute: str
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_function(DOMAIN, name, inputs, ["y"], nodes, imports, [attribute])


def _linear(result: str) -> list[onnx.NodeProto]:
    """x · w + bias; the order of nodes is the one that ONNX Runtime fuses into one kernel of its own."""
    shape = helper.make_node("Constant", [], ["shape"])
    shape.attribute.append(_referred("value_ints", "shape", AttributeProto.INTS))
    return [
        # in two steps, each of which moves one axis: ONNX Runtime takes eight times as long for one step of both
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("Constant", [], ["panels"], value_ints=[0, -1, _COLUMNS]),
        helper.make_node("Reshape", ["turned", "panels"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["lines"], perm=[1, 0, 2]),
        shape,
        helper.make_node("Reshape", ["lines", "shape"], ["matrix"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["rounded", "x_scale", "zero"]),
        helper.make_node("MatMulInteger", ["rounded", "matrix", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "scale"], ["scales"]),
        helper.make_node("Mul", ["floats", "scales"], ["product"]),
        helper.make_node("Add", ["product", "bias"], [result]),
    ]


def _attention() -> list[onnx.NodeProto]:
    """ONNX Runtime's own attention, which goes through keys block by block; it has a batch axis."""
    whole = helper.make_node("MultiHeadAttention", [f"{name}_batch" for name in "qkv"], ["batch"], domain=CONTRIB)
    whole.attribute.append(_referred("num_heads", "num_heads", AttributeProto.INT))
    return [
        helper.make_node("Constant", [], ["first"], value_ints=[0]),
        *(helper.make_node("Unsqueeze", [name, "first"], [f"{name}_batch"]) for name in "qkv"),
        whole,
        helper.make_node("Squeeze", ["batch", "first"], ["y"]),
    ]


def _referred(name: str, outer: str, kind: int) -> onnx.AttributeProto:
    """Return a node's attribute that has the value of the function's."""
    attribute = onnx.AttributeProto(name=name, type=kind)  # type: ignore[arg-type]
    attribute.ref_attr_name = outer
    return attribute
