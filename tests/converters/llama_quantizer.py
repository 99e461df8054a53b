"""llama.cpp's own quantizer with its options: an importance matrix and types by pattern."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from bimedix_edge.converters.decoder.quantize import FILE_TYPES


class _Override(ctypes.Structure):
    # llama.h, llama_model_tensor_override
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


def quantized_by_llama_cpp(
    source: Path,
    target: Path,
    kind: str,
    *,
    imatrix: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
) -> gguf.GGUFReader:
    """Quantize a GGUF and return a reader of the result.

    Args:
        imatrix: tensor name to float32 (n_per_row,).
        types: regular expression to ggml type.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(FILE_TYPES[kind].number)
    keep = []
    if imatrix is not None:
        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in imatrix.items()}
        pointer = ctypes.POINTER(ctypes.c_float)
        items = [(name.encode(), array.ctypes.data_as(pointer), array.size) for name, array in arrays.items()]
        entries = (llama_cpp.llama_model_imatrix_data * (len(items) + 1))(*items)
        params.imatrix = entries
        keep += [arrays, entries]
    if types is not None:
        overrides = (_Override * (len(types) + 1))(
            *((pattern.encode(), int(gguf.GGMLQuantizationType[name])) for pattern, name in types.items())
        )
        field = type(params.tt_overrides)
        params.tt_overrides = ctypes.cast(overrides, field)
        keep.append(overrides)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    assert keep is not None  # the structure holds addresses only
    return gguf.GGUFReader(target)
