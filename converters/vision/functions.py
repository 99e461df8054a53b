"""The vision graph's operators of our own: functions of standard operators, for which kernels/vision has kernels.

A model that calls a function brings its definition. ONNX Runtime takes a kernel registered under the function's name,
and puts the definition in its place where there is none: the file is an ordinary ONNX model, and needs nothing of ours.

    Int8Linear(x, weight, scale, bias)               y = x · w + bias
    Int8LinearSilu(x, weight, scale, bias)           y / (1 + exp(-y)) of that
    Int8LinearAdd(x, weight, scale, bias, residual)  and the sum with what came before
    Attention(q, k, v; num_heads)                    every token to every token: (T, C) each

x, float32 (T, K), is rounded to 8 bits by one scale and one zero point for the whole tensor, found for each image
(`DynamicQuantizeLinear`); the weight is int8 (K, N) with a scale a column. It lies as ONNX Runtime wants it: turning
another order back at load, by nodes of the graph, took a gigabyte and more than a second.

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
# sums of so many products of bytes fit into 32 bits
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
        opset: of the default domain.
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
    """x · w + bias; the order of nodes is the one that ONNX Runtime fuses into one kernel of its own."""
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["rounded", "x_scale", "zero"]),
        helper.make_node("MatMulInteger", ["rounded", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "scale"], ["scales"]),
        helper.make_node("Mul", ["floats", "scales"], ["product"]),
        helper.make_node("Add", ["product", "bias"], [result]),
    ]


def _attention() -> list[onnx.NodeProto]:
    """ONNX Runtime's own attention, which goes through keys block by block; it has a batch axis."""
    whole = helper.make_node("MultiHeadAttention", [f"{name}_batch" for name in "qkv"], ["batch"], domain=CONTRIB)
    whole.attribute.append(AttributeProto(name="num_heads", type=AttributeProto.INT, ref_attr_name="num_heads"))
    return [
        helper.make_node("Constant", [], ["first"], value_ints=[0]),
        *(helper.make_node("Unsqueeze", [name, "first"], [f"{name}_batch"]) for name in "qkv"),
        whole,
        helper.make_node("Squeeze", ["batch", "first"], ["y"]),
    ]
