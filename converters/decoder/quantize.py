"""Chooses the type of each tensor of a decoder and quantizes it, to the bytes of ggml's quantizers, on all cores.

`FILE_TYPES` and `tensor_type` are the recipe: for the same name they choose what llama.cpp's quantizer chooses, with or
without an importance matrix. The blocks are computed from the same float32 values by the same function, or by the
project's own with the same steps (kernels/quantize.cpp), so that the bytes are equal too. A test compares them. Among
the converters, only this file and `calibrate.py` import llama_cpp.

Source: llama.cpp `src/llama-quant.cpp`, as vendored in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp._ctypes_extensions as llama_extensions
import llama_cpp._ggml as llama_ggml
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from bimedix_edge.decoder.kernels import load_quantizer
from bimedix_edge.errors import CheckpointError, UsageError

__all__ = [
    "FILE_TYPES",
    "JOB_VALUES",
    "FileType",
    "RecipeShape",
    "RowSource",
    "file_type_named",
    "has_own_quantizer",
    "n_threads",
    "quantize_natively",
    "quantize_with_ggml",
    "quantized_rows",
    "row_blocks",
    "row_bytes",
    "tensor_type",
]

Type = GGMLQuantizationType
# values of one job: enough to hide Python's cost, few enough that all jobs in flight stay below 100 MB
JOB_VALUES = 1 << 20


@dataclass(frozen=True)
class FileType:
    """A type of file that the user can choose.

    Attributes:
        name: Name as llama.cpp spells it.
        base: Type of most matrices.
        number: Number in llama.cpp's `llama_ftype`.
    """

    name: str
    base: GGMLQuantizationType
    number: LlamaFileType


@dataclass(frozen=True)
class RecipeShape:
    """What the choice of a tensor's type depends on, besides its name and its row length.

    Attributes:
        tied: Whether the embedding is also the output matrix.
        has_imatrix: Whether there is an importance matrix, with which llama.cpp makes two other choices.
    """

    n_layer: int
    n_head: int
    n_head_kv: int
    tied: bool
    has_imatrix: bool = False


FILE_TYPES: dict[str, FileType] = {
    name: FileType(name, base, number)
    for name, base, number in (
        ("F32", Type.F32, LlamaFileType.ALL_F32),
        ("F16", Type.F16, LlamaFileType.MOSTLY_F16),
        ("BF16", Type.BF16, LlamaFileType.MOSTLY_BF16),
        ("Q8_0", Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
        ("Q6_K", Type.Q6_K, LlamaFileType.MOSTLY_Q6_K),
        ("Q5_K_M", Type.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
        ("Q4_K_M", Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
        ("Q4_K_S", Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_S),
        ("Q4_0", Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
        ("IQ4_XS", Type.IQ4_XS, LlamaFileType.MOSTLY_IQ4_XS),
    )
}

# what llama.cpp takes instead when a row is not a whole number of blocks
_FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0, Type.IQ4_XS: Type.IQ4_NL}


def file_type_named(name: str) -> FileType:
    """Return the file type with this name, in any case.

    Raises:
        UsageError: No type has this name; the message lists them.
    """
    if found := FILE_TYPES.get(name.upper()):
        return found
    raise UsageError(f"There is no type {name[:40]!r}. Choose one of {', '.join(FILE_TYPES)}.")


def tensor_type(name: str, shape: tuple[int, ...], file_type: FileType, model: RecipeShape) -> GGMLQuantizationType:
    """Return the type that llama.cpp's quantizer chooses for one tensor.

    Args:
        name: Name in the GGUF, such as `blk.0.attn_v.weight`.
        shape: Row-major shape; the last dimension is the row.
        file_type: The user's choice.
        model: The decoder's shape.
    """
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return Type.F32
    if file_type.base in (Type.F32, Type.F16, Type.BF16):
        return file_type.base
    chosen = _mixture(name, shape[-1], file_type, model)
    for candidate in (chosen, _FALLBACK.get(chosen, chosen)):
        if shape[-1] % GGML_QUANT_SIZES[candidate][0] == 0:
            return candidate
    return Type.F16


def _mixture(name: str, n_per_row: int, file_type: FileType, model: RecipeShape) -> GGMLQuantizationType:
    """Choose by the tensor's role; `llama_tensor_get_type_impl`."""
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        if n_per_row % GGML_QUANT_SIZES[file_type.base][0]:
            return Type.Q8_0
        return Type.Q8_0 if file_type.base is Type.Q8_0 else Type.Q6_K
    if name.endswith(".attn_v.weight"):
        return _attn_v(_layer(name), file_type, model)
    if name.endswith(".ffn_down.weight"):
        return _ffn_down(_layer(name), file_type, model)
    return file_type.base


def _attn_v(layer: int, file_type: FileType, model: RecipeShape) -> GGMLQuantizationType:
    chosen = file_type.base
    if file_type.name == "IQ4_XS" and model.n_head // model.n_head_kv >= 4:
        chosen = Type.Q5_K
    elif file_type.name in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, model.n_layer):
        chosen = Type.Q6_K
    elif file_type.name == "Q4_K_S" and layer < 4:
        chosen = Type.Q5_K
    # llama.cpp's LLM_TYPE_70B: eight heads share these weights, so more bits cost little
    if chosen is Type.Q4_K and model.n_layer == 80 and model.n_head != model.n_head_kv:
        chosen = Type.Q5_K
    return chosen


def _ffn_down(layer: int, file_type: FileType, model: RecipeShape) -> GGMLQuantizationType:
    if file_type.name in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, model.n_layer):
        return Type.Q6_K
    if layer < model.n_layer // 8:
        if file_type.name == "Q4_K_S" or (file_type.name == "IQ4_XS" and not model.has_imatrix):
            return Type.Q5_K
        if file_type.name == "Q4_0" and model.has_imatrix:
            return Type.Q4_1  # llama.cpp: a weighted Q4_0 can fail in the first layers
    return file_type.base


def _more_bits(layer: int, n_layer: int) -> bool:
    """Return whether llama.cpp spends more bits on this layer: the first and last eighth, every third between."""
    return layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def row_bytes(kind: GGMLQuantizationType, n_per_row: int) -> int:
    """Return the size of one row; `n_per_row` is a multiple of the type's block."""
    block, size = GGML_QUANT_SIZES[kind]
    return n_per_row // block * size


def row_blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the blocks of rows, start and stop, in which `quantized_rows` works best.

    Args:
        shape: Number of rows, values in each row.
    """
    n_rows, n_per_row = shape
    step = max(1, JOB_VALUES // n_per_row)
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def n_threads() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class RowSource:
    """The rows of a tensor and what they are quantized to.

    Attributes:
        name: Name for error messages.
        kind: Target type.
        read: Returns rows `start` to `stop` as float32 (stop - start, n_per_row), contiguous.
        importance: How much each column matters, float32 (n_per_row,), or None.
    """

    name: str
    kind: GGMLQuantizationType
    read: Callable[[int, int], NDArray[np.float32]]
    importance: NDArray[np.float32] | None = None


def quantized_rows(source: RowSource, start: int, stop: int) -> memoryview:
    """Return some rows of a tensor in the target type.

    ctypes releases Python's lock, so that calls run in parallel.

    Args:
        source: The tensor.
        start, stop: The rows.

    Returns:
        The rows' bytes.

    Raises:
        CheckpointError: A weight is NaN or infinite, or too large for the type.
    """
    name, kind, importance = source.name, source.kind, source.importance
    values = source.read(start, stop)
    n_rows, n_per_row = values.shape
    # NaN or infinity in a value makes the sum NaN or infinite; only then are all values checked
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.add.reduce(values, axis=None)) or np.isfinite(values).all()
    if not finite:
        raise CheckpointError(
            f"{name} has NaN or infinity in rows {start} to {stop - 1}. "
            "Download the checkpoint again, or ask its authors."
        )
    data = np.empty(n_rows * row_bytes(kind, n_per_row), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    if importance is None and has_own_quantizer(kind):
        written = data.size * quantize_natively(kind, values, data)
    else:
        written = quantize_with_ggml(kind, values, data, weights)
    if written != data.size or not _library.ggml_validate_row_data(int(kind), data.ctypes.data, data.size):
        raise CheckpointError(
            f"{name} exceeds the range of {kind.name} in rows {start} to {stop - 1}. "
            "Choose another type, for instance BF16 or F32."
        )
    return data.data


def quantize_natively(kind: GGMLQuantizationType, values: NDArray[np.float32], data: NDArray[np.uint8]) -> bool:
    """Quantize rows by the project's own kernel; return whether it knows the type and this processor can run it.

    Args:
        kind: Target type.
        values: float32 (n_rows, n_per_row), contiguous.
        data: uint8, the rows' bytes; written only on success.
    """
    if _quantizer is None or not _quantizer.knows(int(kind)):
        return False
    return bool(_quantizer.quantize(int(kind), values.ctypes.data, data.ctypes.data, values.size))


def quantize_with_ggml(
    kind: GGMLQuantizationType, values: NDArray[np.float32], data: NDArray[np.uint8], weights: int | None = None
) -> int:
    """Quantize rows by ggml and return the number of bytes written.

    Args:
        kind, values, data: See `quantize_natively`.
        weights: Address of the importance of each column, float32 (n_per_row,), or None.
    """
    address = values.ctypes.data
    return int(_library.ggml_quantize_chunk(int(kind), address, data.ctypes.data, 0, *values.shape, weights))


@functools.cache
def has_own_quantizer(kind: GGMLQuantizationType) -> bool:
    """Return whether the project's own quantizer writes a type on this machine: only if it writes ggml's bytes.

    Both quantize the same ordinary and odd rows, which reveals a ggml that was compiled to round in another way.
    """
    values = _test_rows()
    expected, found = (np.zeros(len(values) * row_bytes(kind, values.shape[1]), np.uint8) for _ in range(2))
    quantize_with_ggml(kind, values, expected)
    return quantize_natively(kind, values, found) and bool(np.array_equal(expected, found))


def _test_rows() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((16, 1024), np.float32)
    rows[1] = np.abs(rows[1])
    rows[2] *= np.float32(1e-20)
    rows[3, ::64] *= np.float32(1e5)
    rows[4] = 0
    rows[5] = np.repeat(rows[5, :32], 32)
    rows[6] *= rng.random(1024, np.float32) < 0.1
    rows[7] *= np.repeat(10.0 ** rng.uniform(-9, 3, 32), 32).astype(np.float32)
    return rows


def _load_library() -> Any:
    """Return ggml with the prototypes of the two functions that this module calls."""
    library: Any = llama_ggml.libggml
    if not hasattr(library, "ggml_quantize_chunk"):  # Windows finds a symbol only in the library that defines it
        base = Path(llama_ggml.__file__).parent / "lib"
        library = llama_extensions.load_shared_library("ggml-base", base)
    size, address = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, address, address, size, size, size, address]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, address, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


_library = _load_library()
_quantizer = load_quantizer(importlib.metadata.version("llama-cpp-python"))
