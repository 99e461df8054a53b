"""Source against result: the distance of each written tensor from the checkpoint, and of each token from the reference.

This check shares no code with the conversion. It reads the GGUF back from the disk, dequantizes it by gguf-py's numpy
reference, permutes it back by the inverse formula, and compares it with the checkpoint's numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from bimedix_edge.converters.check.reference import image_embeds, inverse_frequencies
from bimedix_edge.converters.decoder.quantize import row_bytes
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.config import DecoderConfig
from bimedix_edge.decoder.gguf_header import TensorInfo, read_header
from bimedix_edge.errors import CheckpointError

__all__ = ["BLOCK_VALUES", "TensorError", "cosines", "decoder_errors", "token_cosines"]

BLOCK_VALUES = 1 << 20
_RUNS = 8
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
    """Distance of one tensor of the GGUF from its source.

    Attributes:
        name: Name in the GGUF.
        type: The ggml type it is stored in.
        n_values: Number of its values.
        relative_rms: Root mean square of the difference, divided by that of the source.
        cosine: Cosine between the two tensors, each taken as one vector.
        worst_row: Largest relative RMS of a row, which reveals a single wrong block.
    """

    name: str
    type: str
    n_values: int
    relative_rms: float
    cosine: float
    worst_row: float


def decoder_errors(
    path: Path,
    checkpoint: Checkpoint,
    *,
    types: Mapping[str, GGMLQuantizationType] | None = None,
    max_values: int | None = None,
) -> Iterator[TensorError]:
    """Compare every tensor of a GGUF with the checkpoint it was made from.

    Args:
        path: The GGUF.
        checkpoint: The source.
        types: Type that each tensor should have; not checked by default.
        max_values: Approximate number of compared values of each tensor: rows in eight runs from its first to its
            last, always the same; all of them by default.

    Yields:
        One error for each tensor, in the file's order.

    Raises:
        CheckpointError: The GGUF has wrong tensors, shapes or types, ends too early, or contains NaN.
    """
    data = np.memmap(path, np.uint8, "r")
    found = _tensors(path, data)
    expected = dict(_expected(checkpoint.config.decoder))
    if found.keys() != expected.keys():
        differing = sorted(found.keys() ^ expected.keys())
        raise CheckpointError(
            f"{path.name} should have {len(expected)} tensors, but it differs from the checkpoint in "
            f"{', '.join(differing[:12])}. Convert again."
        )
    _check_types(path, found, types or {})
    for name, tensor in found.items():
        source = _source(name, expected[name], checkpoint)
        if (shape := tensor.dims[::-1]) != source.shape:
            raise CheckpointError(
                f"{name} in {path.name} has the shape {shape} instead of {source.shape}. Convert again."
            )
        yield _compare(name, tensor, data, source, max_values)


def token_cosines(
    checkpoint: Checkpoint,
    encode: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    pixel_values: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Compare a vision encoder with the numpy reference on one image.

    Args:
        checkpoint: Source of the weights.
        encode: The converted encoder: float32 (1, 3, S, S) to float32 (1, n_tokens, n_embd).
        pixel_values: float32 (1, 3, S, S).

    Returns:
        The cosine of each token with the reference's, float64 (n_tokens,).
    """
    return cosines(encode(pixel_values)[0], image_embeds(checkpoint, pixel_values)[0])


def cosines(given: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each row with the same row of the other, float64 (n,); for two rows of zeros, 1."""
    left, right = given.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    same = (left == right).all(axis=-1)
    result: NDArray[np.float64] = np.where(same, 1.0, (left * right).sum(-1) / np.where(norms == 0, 1.0, norms))
    return result


@dataclass(frozen=True)
class _Rows:
    """A source tensor as rows in the GGUF's order, read when they are needed; a vector is one row."""

    shape: tuple[int, ...]
    read: Callable[[NDArray[np.intp]], NDArray[np.float32]]


def _tensors(path: Path, data: NDArray[np.uint8]) -> dict[str, TensorInfo]:
    try:
        tensors = read_header(data.data).tensors
        for name, tensor in tensors.items():
            n_rows, n_per_row = _matrix(tensor.dims[::-1])
            if tensor.start + n_rows * row_bytes(GGMLQuantizationType(tensor.kind), n_per_row) > data.size:
                raise ValueError(f"{name[:80]} ends beyond the file")
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not a whole GGUF: {error}. Convert again.") from error
    return tensors


def _check_types(path: Path, found: Mapping[str, TensorInfo], types: Mapping[str, GGMLQuantizationType]) -> None:
    wrong = [
        f"{name} is {GGMLQuantizationType(found[name].kind).name} instead of {kind.name}"
        for name, kind in types.items()
        if name in found and found[name].kind != kind
    ]
    if wrong:
        raise CheckpointError(
            f"{path.name} does not have the recipe's types: {'; '.join(wrong[:12])}. Convert again, and report this if "
            "it happens again."
        )


def _expected(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Yield the name in the GGUF and in the checkpoint, which is empty for a computed tensor."""
    for name, source in _TOP.items():
        if name != "output.weight" or not config.tied:
            yield name, source
    for layer in range(config.n_layer):
        for name, source in _IN_BLOCK.items():
            yield f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{source}.weight"
    if config.rope_scaling is not None:
        yield "rope_freqs.weight", ""


def _source(name: str, source: str, checkpoint: Checkpoint) -> _Rows:
    if source and len(shape := checkpoint.shape(source)) == 2:
        n_head = _heads(name, checkpoint.config.decoder)
        head_dim = shape[0] // n_head if n_head else 0
        return _Rows(shape, lambda rows: checkpoint.rows(source, _source_rows(rows, head_dim) if head_dim else rows))
    if source:
        return _Rows(shape, lambda _: checkpoint.rows(source, slice(None))[None])
    config = checkpoint.config.decoder
    unscaled = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    factors = (unscaled / inverse_frequencies(config)).astype(np.float32)
    return _Rows(factors.shape, lambda _: factors[None])


def _heads(name: str, config: DecoderConfig) -> int:
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.weight", name)
    return 0 if match is None else {"q": config.n_head, "k": config.n_head_kv}[match[1]]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])


def _compare(
    name: str, tensor: TensorInfo, data: NDArray[np.uint8], source: _Rows, max_values: int | None
) -> TensorError:
    kind = GGMLQuantizationType(tensor.kind)
    n_rows, n_per_row = _matrix(source.shape)
    size = row_bytes(kind, n_per_row)
    stored = data[tensor.start : tensor.start + n_rows * size].reshape(n_rows, size)
    sums, worst = np.zeros(4), 0.0
    for rows in _row_blocks(n_rows, n_per_row, max_values):
        given = _dequantized(name, stored[rows], kind)
        wanted = source.read(rows).astype(np.float64)
        squares, norms = ((given - wanted) ** 2).sum(-1), (wanted**2).sum(-1)
        sums += [squares.sum(), norms.sum(), (given**2).sum(), (given * wanted).sum()]
        # a row of zeros is judged by the mean of the other rows
        scale = np.where(norms > 0, norms, norms.mean() or 1.0)
        worst = max(worst, float(np.sqrt((squares / scale).max())))
    difference, norm_wanted, norm_given, product = sums
    scale = np.sqrt(norm_wanted * norm_given)
    return TensorError(
        name=name,
        type=kind.name,
        n_values=n_rows * n_per_row,
        relative_rms=float(np.sqrt(difference / (norm_wanted or 1.0))),
        cosine=float(product / scale) if scale else float(difference == 0),
        worst_row=worst,
    )


def _dequantized(name: str, rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        values: NDArray[np.float64] = gguf.quants.dequantize(rows, kind).astype(np.float64)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{name} ({kind.name}) has NaN or infinity. Convert again.")
    return values


def _row_blocks(n_rows: int, n_per_row: int, max_values: int | None) -> Iterator[NDArray[np.intp]]:
    """Yield the rows to compare, in blocks."""
    chosen = np.arange(n_rows, dtype=np.intp)
    if max_values is not None and n_rows * n_per_row > max_values:
        run = max(1, max_values // (n_per_row * _RUNS))
        starts = np.linspace(0, max(n_rows - run, 0), _RUNS).astype(np.intp)
        chosen = np.unique(starts[:, None] + np.arange(min(run, n_rows)))
    step = max(1, BLOCK_VALUES // n_per_row)
    for start in range(0, len(chosen), step):
        yield chosen[start : start + step]


def _source_rows(rows: NDArray[np.intp], head_dim: int) -> NDArray[np.intp]:
    """Return the checkpoint's rows of Q or K (halves of a head) for some rows of the GGUF (pairs)."""
    head, place = np.divmod(rows, head_dim)
    result: NDArray[np.intp] = head * head_dim + place % 2 * (head_dim // 2) + place // 2
    return result
