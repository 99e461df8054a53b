"""Source against converted: how far each written tensor is from the checkpoint, and each token from the reference.

Nothing of the conversion is reused here but the table of names: the GGUF is read back with gguf-py, dequantized by its
numpy reference, un-permuted by the formula of the other direction, and compared with the checkpoint's own numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.checkpoint import Checkpoint
from bimedix_edge.converters.config import DecoderConfig
from bimedix_edge.converters.reference import image_embeds, inverse_frequencies
from bimedix_edge.errors import CheckpointError

__all__ = ["TensorError", "decoder_errors", "token_cosines"]

_BLOCK_VALUES = 1 << 22
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class TensorError:
    """How far one tensor of the GGUF is from its source.

    Attributes:
        name: in the GGUF.
        type: the ggml type it is stored in.
        relative_rms: root mean square of the difference, divided by that of the source.
        cosine: of the two tensors, taken as one vector each.
    """

    name: str
    type: str
    relative_rms: float
    cosine: float


def decoder_errors(path: Path, checkpoint: Checkpoint) -> Iterator[TensorError]:
    """Compare every tensor of a GGUF with the checkpoint it was made from.

    Args:
        path: a GGUF that this package wrote; foreign files can hang gguf-py's reader.
        checkpoint: the source.

    Yields:
        One error a tensor, in the file's order.

    Raises:
        CheckpointError: the GGUF has other tensors or other shapes than the checkpoint implies.
    """
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = dict(_expected(checkpoint.config.decoder))
    if found.keys() != expected.keys():
        differing = sorted(found.keys() ^ expected.keys())
        raise CheckpointError(
            f"Expected {len(expected)} tensors in {path.name}, but it differs from the checkpoint in "
            f"{', '.join(differing[:12])}; convert again."
        )
    for name, tensor in found.items():
        source = _source(name, expected[name], checkpoint)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != source.shape:
            raise CheckpointError(
                f"Expected {name} of shape {source.shape} in {path.name}, but it has {shape}; convert again."
            )
        yield _compare(tensor, source, _heads(name, checkpoint.config.decoder))


def token_cosines(
    checkpoint: Checkpoint,
    encode: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    pixel_values: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Compare a vision encoder with the numpy reference on one image.

    Args:
        checkpoint: the source of the weights.
        encode: the converted encoder: float32 (1, 3, S, S) to float32 (1, n_tokens, n_embd).
        pixel_values: float32 (1, 3, S, S).

    Returns:
        float64 (n_tokens,): the cosine of each token with the reference's.
    """
    reference = image_embeds(checkpoint, pixel_values)[0]
    given = encode(pixel_values)[0].astype(np.float64)
    norms = np.linalg.norm(reference, axis=-1) * np.linalg.norm(given, axis=-1)
    cosines: NDArray[np.float64] = (reference * given).sum(-1) / norms
    return cosines


@dataclass(frozen=True)
class _Rows:
    """A source tensor as rows, read when they are needed."""

    shape: tuple[int, ...]
    read: Callable[[slice], NDArray[np.float32]]


def _expected(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Yield the GGUF's name and the checkpoint's, empty for what is computed."""
    for name, source in _TOP.items():
        if name != "output.weight" or not config.tied:
            yield name, source
    for layer in range(config.n_layer):
        for name, source in _IN_BLOCK.items():
            yield f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{source}.weight"
    if config.rope_scaling is not None:
        yield "rope_freqs.weight", ""


def _source(name: str, source: str, checkpoint: Checkpoint) -> _Rows:
    if source:
        return _Rows(checkpoint.shape(source), lambda rows: checkpoint.rows(source, rows))
    config = checkpoint.config.decoder
    unscaled = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    factors = (unscaled / inverse_frequencies(config)).astype(np.float32)
    return _Rows(factors.shape, lambda rows: factors[rows])


def _heads(name: str, config: DecoderConfig) -> int:
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.weight", name)
    return 0 if match is None else {"q": config.n_head, "k": config.n_head_kv}[match[1]]


def _compare(tensor: gguf.ReaderTensor, source: _Rows, n_head: int) -> TensorError:
    n_rows = source.shape[0]
    # whole heads, so that a block can be un-permuted by itself
    unit = n_rows // n_head if n_head else 1
    step = max(1, _BLOCK_VALUES // (source.shape[-1] * unit)) * unit
    sums = np.zeros(4)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        given = gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float64)
        wanted = source.read(rows).astype(np.float64)
        if n_head:
            given = given.reshape(-1, unit // 2, 2, given.shape[-1]).swapaxes(1, 2).reshape(given.shape)
        sums += [((given - wanted) ** 2).sum(), (wanted**2).sum(), (given**2).sum(), (given * wanted).sum()]
    difference, norm_wanted, norm_given, product = sums
    scale = np.sqrt(norm_wanted * norm_given)
    return TensorError(
        name=tensor.name,
        type=tensor.tensor_type.name,
        relative_rms=float(np.sqrt(difference / norm_wanted)) if norm_wanted else float(np.sqrt(difference)),
        cosine=float(product / scale) if scale else float(difference == 0),
    )
