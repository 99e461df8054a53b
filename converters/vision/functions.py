"""The project's own operators: functions of standard operators, for which kernels/vision has kernels.

A model that calls a function contains its definition. ONNX Runtime uses a kernel registered under the function's name,
or else the definition. So the file is an ordinary ONNX model that runs without the kernels.

    Int8Linear(x, weight, scale, bias)               y = x · w + bias
    Int8LinearSilu(x, weight, scale, bias)           y / (1 + exp(-y)) of that
    Int8LinearAdd(x, weight, scale, bias, residual)  and the sum with what came before
    Attention(q, k, v; num_heads)                    every token to every token: (T, C) each

x, float32 (T, K), is rounded to 8 bits by one scale and one zero point for the whole tensor, computed for each image
(`DynamicQuantizeLinear`); the weight is int8 (K, N) with one scale for each column, in the order that ONNX Runtime
needs. Nodes that convert another order when the file is loaded took a gigabyte and more than a second.

Source: ONNX IR, "Functions"; ONNX operators of opset 17; ONNX Runtime `ContribOperators.md`, version 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import AttributeProto, TensorProto, helper

from bimedix_edge.converters.vision.onnx_file import CONTRIB

__all__ = [
    "ATTENTION",
    "DOMAIN",
    "LINEAR",
    "LINEAR_ADD",
    "LINEAR_SILU",
    "has_heads",
    "is_layer",
    "vision_functions",
]

DOMAIN = "bimedix_edge"
LINEAR, LINEAR_SILU, LINEAR_ADD, ATTENTION = "Int8Linear", "Int8LinearSilu", "Int8LinearAdd", "Attention"
# rows and columns of weights: a tile's row of bytes, and a panel's columns
_UNIT = 64
_MOST_HEAD_SIZE = 128
# sums of at most this number of products of bytes fit into 32 bits
_MOST_ROWS = 65536


def is_layer(rows: int, columns: int) -> bool:
    """Return whether the kernels take a weight (rows, columns) of x · w."""
    return rows % _UNIT == 0 and rows <= _MOST_ROWS and columns % _UNIT == 0


def has_heads(n_embd: int, n_head: int) -> bool:
    """Return whether the kernels take such heads."""
    size, rest = divmod(n_embd, n_head)
    return rest == 0 and size % 32 == 0 and size <= _MOST_HEAD_SIZE


def vision_functions(opset: int) -> list[onnx.FunctionProto]:
    """Return the definitions.

    Args:
        opset: Opset of the default domain.
    """
    silu = [helper.make_node("Sigmoid", ["sum"], ["gate"]), helper.make_node("Mul", ["sum", "gate"], ["y"])]
    add = [helper.make_node("Add", ["residual", "sum"], ["y"])]
    return [
        _function(LINEAR, ["x", "weight", "scale", "bias"], _linear("y"), opset),
        _function(LINEAR_SILU, ["x", "weight", "scale", "bias"], [*_linear("sum"), *silu], opset),
        _function(LINEAR_ADD, ["x", "weight", "scale", "bias", "residual"], [*_linear("sum"), *add], opset),
        _function(ATTENTION, ["q", "k", "v"], _attention(), opset, ["num_heads"]),
    ]


def _function(
    name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto], opset: int, attributes: Sequence[str] = ()
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_function(DOMAIN, name, inputs, ["y"], nodes, imports, attributes)


def _linear(result: str) -> list[onnx.NodeProto]:
    """x · w + bias, in the order of nodes that ONNX Runtime fuses into one of its kernels."""
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["rounded", "x_scale", "zero"]),
        helper.make_node("MatMulInteger", ["rounded", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "scale"], ["scales"]),
        helper.make_node("Mul", ["floats", "scales"], ["product"]),
        helper.make_node("Add", ["product", "bias"], [result]),
    ]


def _attention() -> list[onnx.NodeProto]:
    """ONNX Runtime's own attention, which reads keys block by block and has a batch axis."""
    whole = helper.make_node("MultiHeadAttention", [f"{name}_batch" for name in "qkv"], ["batch"], domain=CONTRIB)
    whole.attribute.append(AttributeProto(name="num_heads", type=AttributeProto.INT, ref_attr_name="num_heads"))
    return [
        helper.make_node("Constant", [], ["first"], value_ints=[0]),
        *(helper.make_node("Unsqueeze", [name, "first"], [f"{name}_batch"]) for name in "qkv"),
        whole,
        helper.make_node("Squeeze", ["batch", "first"], ["y"]),
    ]
