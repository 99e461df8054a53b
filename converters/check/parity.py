"""Source against converted: how far each written tensor is from the checkpoint, and each token from the reference.

Nothing of the conversion is reused here: the GGUF is read back from the disk, dequantized by gguf-py's numpy reference,
un-permuted by the formula of the other direction, and compared with the checkpoint's own numbers.
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
    """How far one tensor of the GGUF is from its source.

    Attributes:
        name: in the GGUF.
        type: the ggml type it is stored in.
        n_values: how many it has.
        relative_rms: root mean square of the difference, divided by that of the source.
        cosine: of the two tensors, taken as one vector each.
        worst_row: the largest relative RMS of a row: one block gone wrong shows here, and not in the whole.
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
        path: the GGUF.
        checkpoint: the source.
        types: the type that each tensor should have, if that is to be checked.
        max_values: about how many values of a tensor are compared: rows in eight runs from its first to its last, the
            same every time; all of them by default.

    Yields:
        One error a tensor, in the file's order.

    Raises:
        CheckpointError: the GGUF has other tensors, shapes or types than it should, ends too early, or has NaN in it.
    """
    data = np.memmap(path, np.uint8, "r")
    found = _tensors(path, data)
    expected = dict(_expected(checkpoint.config.decoder))
    if found.keys() != expected.keys():
        differing = sorted(found.keys() ^ expected.keys())
        raise CheckpointError(
            f"Expected {len(expected)} tensors in {path.name}, but it differs from the checkpoint in "
            f"{', '.join(differing[:12])}; convert again."
        )
    _check_types(path, found, types or {})
    for name, tensor in found.items():
        source = _source(name, expected[name], checkpoint)
        if (shape := tensor.dims[::-1]) != source.shape:
            raise CheckpointError(
                f"Expected {name} of shape {source.shape} in {path.name}, but it has {shape}; convert again."
            )
        yield _compare(name, tensor, data, source, max_values)


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
    return cosines(encode(pixel_values)[0], image_embeds(checkpoint, pixel_values)[0])


def cosines(given: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each row with the same row of the other, float64 (n,); that of two zeros is 1."""
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
                raise ValueError(f"{name[:80]} ends behind the file")
    except ValueError as error:
        raise CheckpointError(f"Expected a whole GGUF in {path.name}, but {error}; convert again.") from error
    return tensors


def _check_types(path: Path, found: Mapping[str, TensorInfo], types: Mapping[str, GGMLQuantizationType]) -> None:
    wrong = [
        f"{name} is {GGMLQuantizationType(found[name].kind).name} instead of {kind.name}"
        for name, kind in types.items()
        if name in found and found[name].kind != kind
    ]
    if wrong:
        raise CheckpointError(
            f"Expected the recipe's types in {path.name}, but {'; '.join(wrong[:12])}; convert again, and report this "
            "if it happens again."
        )


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
        # a row of zeros is judged by what the others are like
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
        raise CheckpointError(f"Expected finite {kind.name} in {name}, but it has NaN or infinity; convert again.")
    return values


def _row_blocks(n_rows: int, n_per_row: int, max_values: int | None) -> Iterator[NDArray[np.intp]]:
    """Yield the rows to compare, some at a time."""
    chosen = np.arange(n_rows, dtype=np.intp)
    if max_values is not None and n_rows * n_per_row > max_values:
        run = max(1, max_values // (n_per_row * _RUNS))
        starts = np.linspace(0, max(n_rows - run, 0), _RUNS).astype(np.intp)
        chosen = np.unique(starts[:, None] + np.arange(min(run, n_rows)))
    step = max(1, BLOCK_VALUES // n_per_row)
    for start in range(0, len(chosen), step):
        yield chosen[start : start + step]


def _source_rows(rows: NDArray[np.intp], head_dim: int) -> NDArray[np.intp]:
    """Return which rows of a checkpoint's Q or K some rows of the GGUF's are: pairs there, halves here."""
    head, place = np.divmod(rows, head_dim)
    result: NDArray[np.intp] = head * head_dim + place % 2 * (head_dim // 2) + place // 2
    return result
