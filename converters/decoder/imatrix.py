"""Importance matrices: how much an error in each column of a matrix counts, measured on text.

An entry is the mean square of a matrix's input, one number for each column, by which ggml's quantizers weight the
errors. This module reads both of llama.cpp's formats, its GGUF and the older .dat, and writes the GGUF.
Conversion permutes rows but never columns, so an importance matrix from any GGUF of the same model fits.

Source: llama.cpp `tools/quantize/quantize.cpp` (load_imatrix), `common/imatrix-loader.cpp` and
`tools/imatrix/imatrix.cpp`, as vendored in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from bimedix_edge.converters.decoder.gguf import TensorSpec
from bimedix_edge.decoder.gguf_header import MAGIC, Cursor, TensorInfo, read_header
from bimedix_edge.errors import InputError

__all__ = ["read_imatrix", "with_importance", "write_imatrix"]

# 70B has 560 matrices of up to 28,672 columns: 30 MB
_MAX_BYTES = 256 << 20
_MAX_ENTRIES = 20_000
_SUMS, _COUNTS = ".in_sum2", ".counts"
Type = GGMLQuantizationType
# ggml ignores the importance for these
_UNWEIGHTED = {Type.F32, Type.F16, Type.BF16, Type.Q8_0}
Importance = Mapping[str, NDArray[np.float32]]


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read an importance matrix.

    Args:
        path: llama.cpp's GGUF or .dat, distinguished by the first bytes.

    Returns:
        Tensor name in the GGUF to float32 (n_per_row,), the same numbers that llama.cpp's quantizer would use.

    Raises:
        InputError: The file cannot be read, is not an importance matrix, or has values that are not means of squares.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise InputError(f"The importance matrix {path} has {size} bytes, more than {_MAX_BYTES}. Choose another.")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"The importance matrix {path} cannot be read ({error.strerror}). Check the path.") from error
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are looked for below
            entries = _from_gguf(data) if data.startswith(MAGIC) else _from_dat(data)
        for name, values in entries.items():
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"{name[:80]} has values that are not means of squares")
    except ValueError as error:
        raise InputError(f"{path} is not an importance matrix of llama.cpp: {error}. Make it again.") from error
    return entries


def with_importance(tensors: list[TensorSpec], importance: Importance) -> list[TensorSpec]:
    """Return the tensors with the importance of each matrix's columns.

    llama.cpp's tool measures the matrices of the blocks only, so the embedding and the output matrix may lack an entry.

    Raises:
        InputError: An entry is missing, belongs to no tensor, or has another number of columns; the error names them.
    """
    matrices = {tensor.name: tensor for tensor in tensors if len(tensor.shape) == 2}
    faults = [f"{name[:80]} is not a matrix of this model" for name in importance if name not in matrices]
    for name, tensor in matrices.items():
        values = importance.get(name)
        if values is None and name.startswith("blk.") and tensor.kind not in _UNWEIGHTED:
            faults.append(f"{name} is missing")
        elif values is not None and len(values) != tensor.shape[-1]:
            faults.append(f"{name} has {len(values)} columns instead of {tensor.shape[-1]}")
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(
            f"The importance matrix does not fit this model: {'; '.join(faults[:8])}{more}. "
            "Make one from the same checkpoint."
        )
    return [replace(tensor, importance=importance.get(tensor.name)) for tensor in tensors]


def write_imatrix(path: Path, sums: Mapping[str, NDArray[np.float64]], n_tokens: int, chunk_size: int) -> None:
    """Write an importance matrix as llama.cpp's GGUF.

    Args:
        path: A new file.
        sums: Tensor name to the sum over all tokens of the square of each column's input.
        n_tokens: Number of tokens.
        chunk_size: Number of tokens in each chunk.
    """
    writer = GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    # upstream puts the text's path here, which reveals something about this machine
    writer.add_array("imatrix.datasets", ["calibration"])
    writer.add_uint32("imatrix.chunk_count", n_tokens // chunk_size)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name in sorted(sums):
        writer.add_tensor(name + _SUMS, sums[name].astype(np.float32)[None])
        writer.add_tensor(name + _COUNTS, np.array([[n_tokens]], np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _from_gguf(data: bytes) -> dict[str, NDArray[np.float32]]:
    header = read_header(data)
    if (kind := header.keys.get("general.type", "imatrix")) != "imatrix":
        raise ValueError(f"it is a GGUF of type {str(kind)[:40]!r}")
    names = [name.removesuffix(_SUMS) for name in header.tensors if name.endswith(_SUMS)]
    if not names:
        raise ValueError("it has no entry")
    entries = {}
    for name in names:
        if name + _COUNTS not in header.tensors:
            raise ValueError(f"{name[:80]} has no count")
        sums = _floats(data, header.tensors[name + _SUMS], name)
        counts = _floats(data, header.tensors[name + _COUNTS], name)
        if counts.size != 1:
            raise ValueError(f"{name[:80]} has {counts.size} counts, as a mixture of experts has")
        count = np.float32(np.rint(counts[0]))
        entries[name] = sums / count if count > 0 else np.ones_like(sums)
    return entries


def _floats(data: bytes, tensor: TensorInfo, name: str) -> NDArray[np.float32]:
    if tensor.kind != Type.F32 or tensor.start + 4 * tensor.n_values > len(data):
        raise ValueError(f"{name[:80]} is not whole float32")
    return np.frombuffer(data, "<f4", tensor.n_values, tensor.start).astype(np.float32)


def _from_dat(data: bytes) -> dict[str, NDArray[np.float32]]:
    cursor = Cursor(data)
    n_entries = cursor.number("i", _MAX_ENTRIES)
    if n_entries < 1:
        raise ValueError("it has no entry")
    entries = {}
    for _ in range(n_entries):
        name, n_calls, n_values = cursor.text("i"), cursor.number("i"), cursor.number("i", 1 << 24)
        values = np.frombuffer(cursor.take(4 * n_values), "<f4").astype(np.float32)
        if not values.size:
            raise ValueError(f"{name[:80]} has no values")
        entries[name] = values / np.float32(n_calls) if n_calls > 0 else values
    return entries
