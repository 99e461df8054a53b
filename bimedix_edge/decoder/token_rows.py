"""The rows of a decoder's token embeddings, as llama.cpp itself would look them up.

A batch of llama.cpp holds tokens or embeddings. With the rows of the text at hand, text and images of a prompt are one
batch. Text on its own would be a small batch, at half the speed. The values are bit-identical to those of ggml's
`get_rows` on the CPU, where llama.cpp keeps this tensor, since they come from the same function.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenRows", "matrix_types"]

_TENSOR = b"token_embd.weight"
# endings of the tensors that are not matrices
_VECTORS = (b"_norm.weight", b"rope_freqs.weight")


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, up to the last field that is read."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class TokenRows:
    """The token embeddings of a GGUF, mapped and not copied.

    Args:
        path: Path of a decoder that llama.cpp has loaded.
        n_vocab, n_embd: Sizes of that decoder.
        ggml: Returns one of ggml's functions by name, result and arguments.

    Raises:
        ValueError: The file ends within the embeddings.
    """

    def __init__(self, path: Path, n_vocab: int, n_embd: int, ggml: Callable[..., Any]) -> None:
        start, kind = _place(path, ggml)
        traits = ggml("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), ctypes.c_int)(kind).contents
        row_bytes = n_embd // traits.blck_size * traits.type_size
        if path.stat().st_size < start + n_vocab * row_bytes:
            raise ValueError(f"{path.name} ends within its token embeddings")
        self._rows: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", start, (n_vocab, row_bytes))
        # ggml has no such function for float32
        self._to_float = traits.to_float or None
        self._n_embd = n_embd

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings of tokens, float32 (n, n_embd)."""
        rows = self._rows[np.asarray(tokens, np.int64)]
        if self._to_float is None:
            return rows.view(np.float32)
        values = np.empty((len(tokens), self._n_embd), np.float32)
        self._to_float(rows.ctypes.data, values.ctypes.data, values.size)
        return values


def matrix_types(path: Path, ggml: Callable[..., Any]) -> frozenset[int]:
    """Return the ggml types of a decoder's matrices.

    Args:
        path, ggml: As for `TokenRows`.

    Raises:
        ValueError: ggml cannot read the header.
    """
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    with _header(path, ggml) as file:
        name_of = ggml("gguf_get_tensor_name", ctypes.c_char_p, pointer, number)
        type_of = ggml("gguf_get_tensor_type", ctypes.c_int, pointer, number)
        return frozenset(
            int(type_of(file, index))
            for index in range(ggml("gguf_get_n_tensors", number, pointer)(file))
            if not name_of(file, index).endswith(_VECTORS)
        )


def _place(path: Path, ggml: Callable[..., Any]) -> tuple[int, int]:
    """Return the offset of the embeddings in the file, and their ggml type."""
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    with _header(path, ggml) as file:
        index = ggml("gguf_find_tensor", number, pointer, ctypes.c_char_p)(file, _TENSOR)
        if index < 0:
            raise ValueError(f"{path.name} has no {_TENSOR.decode()}")
        start = ggml("gguf_get_data_offset", size, pointer)(file)
        offset = ggml("gguf_get_tensor_offset", size, pointer, number)(file, index)
        return int(start + offset), int(ggml("gguf_get_tensor_type", ctypes.c_int, pointer, number)(file, index))


@contextlib.contextmanager
def _header(path: Path, ggml: Callable[..., Any]) -> Iterator[ctypes.c_void_p]:
    pointer = ctypes.c_void_p
    file = ggml("gguf_init_from_file", pointer, ctypes.c_char_p, _InitParams)(str(path).encode(), _InitParams(True))
    if not file:
        raise ValueError(f"ggml cannot read the header of {path.name}")
    try:
        yield file
    finally:
        ggml("gguf_free", None, pointer)(file)
