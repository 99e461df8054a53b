"""Shared by the tests of the kernels: products by our library and by ggml, through ctypes, and weights to multiply."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from bimedix_edge.decoder.kernels import STEM
from bimedix_edge.decoder.llama import ggml  # it loads the ggml that our library is linked to
from bimedix_edge.native import find_library

KINDS = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "F16")
INSTRUCTION_SETS = ("avx2", "avxvnni", "avx512vnni", "amx")
_MARK = 0x7FC0BEEF  # a NaN that no kernel computes
_MARGIN = 64
_MODERATE_SCALE = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,)}


@functools.cache
def library() -> ctypes.CDLL:
    path = find_library(STEM)
    assert path is not None, "the package was installed without its kernels"
    loaded = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_longlong
    loaded.bimedix_edge_kernels_multiply.argtypes = [
        *(ctypes.c_char_p, ctypes.c_int, pointer, number, number, pointer, number, number, pointer, ctypes.c_int)
    ]
    return loaded


def usable(name: str) -> bool:
    """Return whether this processor and this build can run the kernels of a name."""
    weights, x = random_weights("Q8_0", 1, 32, np.random.default_rng(0)), np.zeros((1, 32), np.float32)
    return _call(name, weights, x, np.zeros(1, np.float32), 1) == 0


@dataclass(frozen=True)
class Weights:
    """A matrix in one of ggml's types; row i begins at byte `offset + i * stride` of its memory."""

    kind: str
    rows: NDArray[np.uint8]  # (n_rows, bytes of a row)
    stride: int
    offset: int
    memory: NDArray[np.uint8]

    @property
    def n_columns(self) -> int:
        columns, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.rows.shape[1] // size * columns

    def dense(self) -> NDArray[np.float64]:
        return dequantize(self.rows, GGMLQuantizationType[self.kind]).astype(np.float64)


def place(kind: str, rows: NDArray[np.uint8], *, gap: int = 0, offset: int = 0) -> Weights:
    """Lay rows out with `gap` bytes of 0xFF between them, starting `offset` bytes after a cache line."""
    n_rows, size = rows.shape
    memory = np.full(n_rows * (size + gap) + offset + 64, 0xFF, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]
    for index, row in enumerate(rows):
        start = offset + index * (size + gap)
        memory[start : start + size] = row
    return Weights(kind, rows, size + gap, offset, memory)


def random_weights(kind: str, n_rows: int, n_columns: int, rng: np.random.Generator) -> Weights:
    """Return weights of `random_rows`, without gaps."""
    return place(kind, random_rows(kind, n_rows, n_columns, rng))


def random_rows(kind: str, n_rows: int, n_columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return random bytes, so that every code occurs, with scales of moderate size, so that no sum overflows."""
    if kind == "F16":
        return rng.standard_normal((n_rows, n_columns)).astype(np.float16).view(np.uint8)
    columns, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (n_rows, n_columns // columns, size), np.uint8)
    for at in _MODERATE_SCALE[kind]:
        halves = 0x2000 | rng.integers(0, 1 << 16, blocks.shape[:2], np.uint16) & 0x83FF
        blocks[:, :, at : at + 2] = halves.astype("<u2")[..., None].view(np.uint8)
    return blocks.reshape(n_rows, -1)


def quantized(kind: str, dense: NDArray[np.float32]) -> Weights:
    """Return weights as ggml quantizes them."""
    dense = np.ascontiguousarray(dense, np.float32)
    n_rows, n_columns = dense.shape
    columns, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rows = np.zeros((n_rows, n_columns // columns * size), np.uint8)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    arguments = (ctypes.c_int, pointer, pointer, number, number, number, pointer)
    quantize = ggml("ggml_quantize_chunk", ctypes.c_size_t, *arguments)
    written = quantize(GGMLQuantizationType[kind], dense.ctypes.data, rows.ctypes.data, 0, n_rows, n_columns, None)
    assert written == rows.size
    return place(kind, rows)


def multiply(
    name: str, weights: Weights, x: NDArray[np.float32], *, n_threads: int = 1, shift: int = 0
) -> NDArray[np.float32]:
    """Return x W^T by our kernels, and check that they wrote nothing around it.

    Args:
        name: Name of the kernels, `scalar` or one of INSTRUCTION_SETS.
        weights: W.
        x: Activations, (n_tokens, n_columns).
        n_threads: Threads that share the work.
        shift: Number of floats between a cache line and the first activation, and likewise the first result.
    """
    n_tokens, n_columns = x.shape
    n_rows = len(weights.rows)
    activations = _aligned(x.size + shift)
    activations[shift:] = x.ravel()
    y = _aligned(2 * _MARGIN + shift + n_tokens * n_rows)
    y.view(np.uint32)[:] = _MARK
    first = _MARGIN + shift
    status = _call(name, weights, activations[shift:].reshape(x.shape), y[first:], n_threads)
    assert n_columns == weights.n_columns
    assert status == 0
    marks, result = y.view(np.uint32), y[first : first + n_tokens * n_rows]
    assert (marks[:first] == _MARK).all(), "written before the result"
    assert (marks[first + result.size :] == _MARK).all(), "written after the result"
    assert (result.view(np.uint32) != _MARK).all(), "a part of the result was not written"
    return result.reshape(n_tokens, n_rows)


def _aligned(n: int) -> NDArray[np.float32]:
    memory = np.zeros(n + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + n]


def _call(name: str, weights: Weights, x: NDArray[np.float32], y: NDArray[np.float32], n_threads: int) -> int:
    data = weights.memory.ctypes.data + weights.offset
    shape = (len(weights.rows), x.ctypes.data, len(x), weights.n_columns)
    kind = GGMLQuantizationType[weights.kind]
    status: int = library().bimedix_edge_kernels_multiply(
        name.encode(), kind, data, weights.stride, *shape, y.ctypes.data, n_threads
    )
    return status


class InitParameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def ggml_functions(signatures: Mapping[str, tuple[Any, Sequence[Any]]]) -> SimpleNamespace:
    """Return functions of ggml by name, with their types: the result's, and those of the arguments."""
    return SimpleNamespace(**{name: ggml(name, result, *kinds) for name, (result, kinds) in signatures.items()})


@functools.cache
def _ggml_functions() -> SimpleNamespace:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "ggml_init": (pointer, [InitParameters]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_graph_compute_with_ctx": (ctypes.c_int, [pointer, pointer, ctypes.c_int]),
        "ggml_get_data": (pointer, [pointer]),
    }
    return ggml_functions(signatures)


def ggml_multiply(weights: Weights, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return x W^T by ggml's CPU backend, a graph of one operation."""
    g, n_tokens, n_rows = _ggml_functions(), len(x), len(weights.rows)
    room = weights.rows.nbytes + 8 * x.nbytes + 8 * n_tokens * n_rows + (4 << 20)
    context = g.ggml_init(InitParameters(room, None, False))
    w = g.ggml_new_tensor_2d(context, GGMLQuantizationType[weights.kind], weights.n_columns, n_rows)
    activations = g.ggml_new_tensor_2d(context, GGMLQuantizationType.F32, weights.n_columns, n_tokens)
    product, graph = g.ggml_mul_mat(context, w, activations), g.ggml_new_graph(context)
    g.ggml_build_forward_expand(graph, product)
    rows, x = np.ascontiguousarray(weights.rows), np.ascontiguousarray(x, np.float32)
    ctypes.memmove(g.ggml_get_data(w), rows.ctypes.data, rows.nbytes)
    ctypes.memmove(g.ggml_get_data(activations), x.ctypes.data, x.nbytes)
    assert g.ggml_graph_compute_with_ctx(context, graph, 2) == 0
    result = np.empty((n_tokens, n_rows), np.float32)
    ctypes.memmove(result.ctypes.data, g.ggml_get_data(product), result.nbytes)
    g.ggml_free(context)
    return result
