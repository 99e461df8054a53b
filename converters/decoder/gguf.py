"""The decoder as GGUF: declared, checked against the disk, then written in one pass.

gguf-py writes the header, the keys and the tensor table. The tensors follow in blocks of rows, so that memory does not
grow with the model. The file does not depend on the time, the machine or the order of the shards.

Source: llama.cpp `conversion/llama.py` (class LlamaModel) and `src/models/llama.cpp`, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from bimedix_edge.converters.decoder.chat_template import chat_template
from bimedix_edge.converters.decoder.quantize import (
    FileType,
    RecipeShape,
    RowSource,
    quantized_rows,
    row_blocks,
    row_bytes,
    tensor_type,
)
from bimedix_edge.converters.parts import Part, Step, whole_part
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.config import DecoderConfig
from bimedix_edge.converters.source.tokenizer import SourceVocabulary

__all__ = [
    "BLOCK_TENSORS",
    "About",
    "TensorSpec",
    "declare_decoder",
    "declare_tensors",
    "declared_bytes",
    "decoder_header",
    "decoder_parts",
    "padded",
    "permuted_rows",
    "rope_factors",
    "tensor_names",
    "tensor_steps",
]

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
BLOCK_TENSORS = (
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the GGUF.

    Attributes:
        name: Name in the GGUF.
        source: Canonical name in the checkpoint, or None if it is computed from the configuration.
        shape: Row-major shape; 1-D tensors are one row.
        kind: Type it is written in.
        heads: Number of heads by which its rows are permuted, or 0.
        importance: Weight of an error in each column, float32 (n_per_row,), or None.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    heads: int = 0
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def size_bytes(self) -> int:
        """Return the size of its data, without padding."""
        n_rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return n_rows * row_bytes(self.kind, self.shape[-1])


@dataclass(frozen=True)
class About:
    """General keys of the file.

    Attributes:
        licence: SPDX identifier, such as `CC-BY-NC-SA-4.0`.
        source_url: Where the checkpoint is published, or empty.
    """

    name: str
    licence: str
    languages: tuple[str, ...]
    system: str
    source_url: str = ""


def declare_decoder(checkpoint: Checkpoint, file_type: FileType, *, has_imatrix: bool = False) -> list[TensorSpec]:
    """Declare every tensor of the GGUF, in the order in which it is written.

    Args:
        checkpoint: The source.
        file_type: The user's choice.
        has_imatrix: Whether `imatrix.with_importance` will follow.
    """
    return declare_tensors(checkpoint.config.decoder, checkpoint.shape, file_type, has_imatrix=has_imatrix)


def declare_tensors(
    config: DecoderConfig, shape_of: Callable[[str], tuple[int, ...]], file_type: FileType, *, has_imatrix: bool = False
) -> list[TensorSpec]:
    """Declare every tensor of a decoder, in the order in which it is written.

    Args:
        config: The decoder's configuration.
        shape_of: Returns the shape of a tensor, by its canonical name.
        file_type, has_imatrix: See `declare_decoder`.
    """
    model = RecipeShape(config.n_layer, config.n_head, config.n_head_kv, config.tied, has_imatrix)
    tensors = []
    for name, source, heads in tensor_names(config):
        shape = shape_of(source)
        tensors.append(TensorSpec(name, source, shape, tensor_type(name, shape, file_type, model), heads))
    if config.rope_scaling is not None:
        shape = (config.head_dim // 2,)
        tensors.append(TensorSpec("rope_freqs.weight", None, shape, GGMLQuantizationType.F32))
    return tensors


def declared_bytes(tensors: list[TensorSpec], vocabulary: SourceVocabulary) -> int:
    """Return the approximate size of the file, an upper estimate."""
    data = sum(padded(tensor.size_bytes) for tensor in tensors)
    words = sum(len(text.encode()) + 16 for text in (*vocabulary.tokens, *vocabulary.merges))
    return data + words + 256 * len(tensors) + (64 << 10)


def decoder_parts(
    checkpoint: Checkpoint,
    tensors: list[TensorSpec],
    *,
    file_type: FileType,
    vocabulary: SourceVocabulary,
    about: About,
) -> list[Part]:
    """Return the GGUF as parts: the header, then each tensor.

    Args:
        checkpoint: Source of the weights.
        tensors: Result of `declare_decoder`.
        file_type: The user's choice, which the file also names.
        vocabulary: Result of `read_vocabulary`.
        about: General keys.

    Returns:
        Parts whose steps raise CheckpointError if a weight is NaN, infinite, or too large for its type.
    """
    header = decoder_header(checkpoint.config.decoder, tensors, file_type, vocabulary, about)
    data = (Part(item.name, padded(item.size_bytes), partial(tensor_steps, item, checkpoint)) for item in tensors)
    return [whole_part("header", header), *data]


def tensor_steps(tensor: TensorSpec, checkpoint: Checkpoint) -> Iterator[Step]:
    """Yield functions that return a tensor's bytes piece by piece, the last of them its padding."""
    if tensor.source is None:
        factors = rope_factors(checkpoint.config.decoder)
        yield lambda: factors.view(np.uint8).data
    else:
        n_rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        order = permuted_rows(n_rows, tensor.heads) if tensor.heads else None
        read = partial(_read_rows, checkpoint, tensor.source, order)
        rows = RowSource(tensor.name, tensor.kind, read, tensor.importance)
        for start, stop in row_blocks((n_rows, tensor.shape[-1])):
            yield partial(quantized_rows, rows, start, stop)
    padding = memoryview(bytes(padded(tensor.size_bytes) - tensor.size_bytes))
    yield lambda: padding


def _read_rows(
    checkpoint: Checkpoint, source: str, order: NDArray[np.intp] | None, start: int, stop: int
) -> NDArray[np.float32]:
    if len(checkpoint.shape(source)) == 1:
        return checkpoint.rows(source, slice(None))[None]
    return checkpoint.rows(source, slice(start, stop) if order is None else order[start:stop])


def permuted_rows(n_rows: int, n_head: int) -> NDArray[np.intp]:
    """Return, for each row of Q or K in a GGUF, the number of its row in the checkpoint.

    transformers rotates the two halves of a head against each other, ggml neighbouring pairs; so row 2j of a head is
    the checkpoint's row j, and row 2j + 1 its row j + head_dim / 2.

    Args:
        n_rows: Rows of the matrix.
        n_head: Number of its heads: n_head for Q, n_head_kv for K.

    Source: llama.cpp `LlamaModel.permute`.
    """
    rows: NDArray[np.intp] = np.arange(n_rows, dtype=np.intp).reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)
    return rows


def rope_factors(config: DecoderConfig) -> NDArray[np.float32]:
    """Return the divisor of each rotation frequency in Llama 3.1's scaling, float32 (head_dim / 2,).

    Source: llama.cpp `LlamaModel.generate_extra_tensors`; transformers `_compute_llama3_parameters`. float32
    throughout, as there.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return np.ones(config.head_dim // 2, np.float32)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    wavelengths = np.float32(2 * np.pi) / (np.float32(1) / np.float32(config.rope_theta) ** exponents)
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    with np.errstate(divide="ignore"):  # outside the blended range
        smooth = (original / wavelengths - low) / (high - low)
        blended = 1 / ((1 - smooth) / scaling.factor + smooth)
    long = np.where(wavelengths > original / low, scaling.factor, blended)
    factors: NDArray[np.float32] = np.where(wavelengths < original / high, 1, long).astype(np.float32)
    return factors


def tensor_names(config: DecoderConfig) -> Iterator[tuple[str, str, int]]:
    """Yield each tensor's name in the GGUF, in the checkpoint, and the heads its rows are permuted by."""
    heads = {"attn_q": config.n_head, "attn_k": config.n_head_kv}
    yield "token_embd.weight", "model.embed_tokens.weight", 0
    for layer in range(config.n_layer):
        for name, source in BLOCK_TENSORS:
            yield f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{source}.weight", heads.get(name, 0)
    yield "output_norm.weight", "model.norm.weight", 0
    if not config.tied:
        # with tied embeddings, llama.cpp uses the embedding as the output matrix
        yield "output.weight", "lm_head.weight", 0


def decoder_header(
    config: DecoderConfig,
    tensors: list[TensorSpec],
    file_type: FileType,
    vocabulary: SourceVocabulary,
    about: About,
) -> bytes:
    """Return everything before the first tensor's data; the data of each tensor is padded to `padded` bytes."""
    writer = GGUFWriter(None, "llama")
    _add_general(writer, tensors, file_type, about)
    _add_shape(writer, config)
    _add_vocabulary(writer, vocabulary, about.system)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, tensor.kind)
    buffer: Any = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY  # as if a file had been opened
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    header: bytes = buffer.getvalue()
    return header.ljust(padded(len(header)), b"\0")


def _add_general(writer: GGUFWriter, tensors: list[TensorSpec], file_type: FileType, about: About) -> None:
    n_params = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    writer.add_type("model")
    writer.add_name(about.name)
    writer.add_size_label(gguf.size_label(n_params, n_params, 0, 0))
    writer.add_license(about.licence.lower())
    writer.add_source_url(about.source_url)
    writer.add_languages(list(about.languages))
    writer.add_file_type(int(file_type.number))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_shape(writer: GGUFWriter, config: DecoderConfig) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_ctx_train)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_ff)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head_kv)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.n_vocab)
    writer.add_rope_dimension_count(config.head_dim)
    if config.head_dim * config.n_head != config.n_embd:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def _add_vocabulary(writer: GGUFWriter, vocabulary: SourceVocabulary, system: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_chat_template(chat_template(system))


def padded(size: int) -> int:
    """Return the room that `size` bytes of a tensor take in the file."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
