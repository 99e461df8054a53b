"""A decoder of full size with random weights as a GGUF, written in seconds, to measure the speed of a machine.

Its tensors have the types and sizes of a converted checkpoint, so that it runs as fast as one. Each tensor repeats a
few rows of random weights, so that only the disk limits how fast the file is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.converters.decoder.gguf import About, TensorSpec, declare_tensors, decoder_header, padded
from bimedix_edge.converters.decoder.quantize import FileType, RowSource, quantized_rows
from bimedix_edge.converters.source.tokenizer import SourceVocabulary, read_vocabulary
from bimedix_edge.converters.synthetic.config import SHAPES, checkpoint_config, tensor_shapes
from bimedix_edge.converters.synthetic.tokenizer import tokenizer_config, tokenizer_json

__all__ = ["random_decoder_bytes", "write_random_decoder"]

_ROWS = 64
_SCALE = 0.02
# the matrices that add to the residual stream are smaller, as in GPT-2's initialization: a network of random weights
# amplifies any difference, and this reduces it
_ADDED = ("attn_output.weight", "ffn_down.weight")


def random_decoder_bytes(shape: str, file_type: FileType) -> int:
    """Return the number of bytes that `write_random_decoder` will write, without the vocabulary's few megabytes."""
    tensors = declare_tensors(
        checkpoint_config(SHAPES[shape]).decoder, tensor_shapes(SHAPES[shape]).__getitem__, file_type
    )
    return sum(padded(tensor.size_bytes) for tensor in tensors)


def write_random_decoder(
    path: Path, shape: str, file_type: FileType, progress: Callable[[int, int], None], n_rows: int = _ROWS
) -> DecoderSpec:
    """Write a GGUF of random weights.

    Args:
        path: The file, which must not exist.
        shape: A key of `config.SHAPES`.
        file_type: Type of the decoder.
        progress: Called with the bytes written and the bytes to write.
        n_rows: Number of different rows of each type and length.

    Returns:
        The manifest's description of it.

    Raises:
        OSError: The disk is full or fails.
    """
    config = checkpoint_config(SHAPES[shape]).decoder
    shapes = tensor_shapes(SHAPES[shape])
    tensors = declare_tensors(config, shapes.__getitem__, file_type)
    vocabulary = _vocabulary(config.n_vocab)
    header = decoder_header(config, tensors, file_type, vocabulary, About("random", "CC0-1.0", (), ""))
    total = len(header) + sum(padded(tensor.size_bytes) for tensor in tensors)
    rows = partial(_some_rows, np.random.default_rng(0), {}, n_rows, config.n_layer)
    with path.open("xb") as file:
        done = file.write(header)
        for tensor in tensors:
            for block in _blocks(tensor, rows(tensor)):
                done += file.write(block)
                progress(done, total)
    return DecoderSpec(
        architecture="llama",
        file_type=file_type.name,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_head_kv=config.n_head_kv,
        head_dim=config.head_dim,
        n_vocab=config.n_vocab,
        n_ctx_train=config.n_ctx_train,
    )


def _some_rows(
    rng: np.random.Generator,
    known: dict[tuple[GGMLQuantizationType, int, float], bytes],
    n_rows: int,
    n_layer: int,
    tensor: TensorSpec,
) -> bytes:
    """Return a few rows of a tensor's type and length; the weights of a norm are ones."""
    if len(tensor.shape) == 1:
        return np.ones(tensor.shape, np.float32).tobytes()
    scale = _SCALE / (2 * n_layer) ** 0.5 if tensor.name.endswith(_ADDED) else _SCALE
    key = tensor.kind, tensor.shape[-1], scale
    if key not in known:
        values: NDArray[np.float32] = rng.standard_normal((n_rows, tensor.shape[-1]), np.float32) * np.float32(scale)
        source = RowSource(tensor.name, tensor.kind, lambda start, stop: values[start:stop])
        known[key] = bytes(quantized_rows(source, 0, n_rows))
    return known[key]


def _blocks(tensor: TensorSpec, rows: bytes) -> Iterator[bytes]:
    left = tensor.size_bytes
    while left > 0:
        yield rows[:left]
        left -= len(rows)
    yield bytes(padded(tensor.size_bytes) - tensor.size_bytes)


def _vocabulary(n_vocab: int) -> SourceVocabulary:
    with tempfile.TemporaryDirectory(prefix="bimedix-edge-") as folder:
        for name, value in (("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", tokenizer_config())):
            (Path(folder) / name).write_text(json.dumps(value), encoding="utf-8")
        return read_vocabulary(Path(folder), n_vocab)
