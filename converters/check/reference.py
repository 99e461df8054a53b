"""The model in plain numpy, slow and obvious: the reference for the converters' output.

Weights come straight from the checkpoint, under its canonical names. They are not permuted, fused or reordered, so that
the reference shares no mistake with the conversion. All values have one float type, float64 by default.
Linear layers are y[m, n] = x[m, k] · w[n, k]ᵀ, as in the checkpoint.

Source: transformers `CLIPVisionTransformer`, `LlavaMultiModalProjector`, `LlamaModel`, `_compute_llama3_parameters`.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.source.config import CheckpointConfig, DecoderConfig

__all__ = ["Source", "SourceWeights", "decoder_logits", "image_embeds", "inverse_frequencies"]

Array = NDArray[Any]


class Source(Protocol):
    """Source of the weights; see `checkpoint.Checkpoint`."""

    @property
    def config(self) -> CheckpointConfig:
        """Return the checkpoint's configuration."""

    def rows(self, name: str, select: slice) -> NDArray[np.float32]:
        """Return some rows of a tensor."""


class SourceWeights:
    """A checkpoint's tensors and its layers in the float type of the computation.

    Args:
        checkpoint: Source of the weights.
        dtype: Float type of the computation.
    """

    def __init__(self, checkpoint: Source, dtype: type[np.floating[Any]]) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype

    def __getitem__(self, name: str) -> Array:
        return self.checkpoint.rows(name, slice(None)).astype(self.dtype, copy=False)

    def linear(self, name: str, x: Array, *, bias: bool = True) -> Array:
        """Return x · wᵀ + b: (…, k) to (…, n)."""
        product: Array = x @ self[f"{name}.weight"].T
        return product + self[f"{name}.bias"] if bias else product

    def layer_norm(self, name: str, x: Array, eps: float) -> Array:
        """Return the rows of x with mean 0 and variance 1, scaled and shifted."""
        centred = x - x.mean(-1, keepdims=True)
        scaled: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]

    def rms_norm(self, name: str, x: Array, eps: float) -> Array:
        """Return the rows of x divided by their root mean square, scaled."""
        scaled: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return scaled * self[f"{name}.weight"]


def image_embeds(
    checkpoint: Source, pixel_values: NDArray[np.float32], dtype: type[np.floating[Any]] = np.float64
) -> Array:
    """Return the embeddings of some images, the input of the decoder.

    Args:
        checkpoint: Source of the weights; each is read once for all images.
        pixel_values: float32 (n, 3, S, S).
        dtype: Float type of the computation.

    Returns:
        `dtype` (n, n_tokens, n_embd).
    """
    config, weights = checkpoint.config.vision, SourceWeights(checkpoint, dtype)
    hidden = np.stack([_embed_patches(weights, image.astype(dtype), config.patch_px) for image in pixel_values])
    hidden = weights.layer_norm("vision.pre_layrnorm", hidden, config.layer_norm_eps)
    activate = _quick_gelu if config.activation == "quick_gelu" else _gelu
    for index in range(checkpoint.config.n_blocks):
        block = f"vision.encoder.layers.{index}."
        normed = weights.layer_norm(block + "layer_norm1", hidden, config.layer_norm_eps)
        query, key, value = (
            _heads(weights.linear(f"{block}self_attn.{part}_proj", normed), config.n_head) for part in "qkv"
        )
        context = _attend(query, key, value, np.zeros((1, 1), dtype))
        hidden = hidden + weights.linear(block + "self_attn.out_proj", context)
        normed = weights.layer_norm(block + "layer_norm2", hidden, config.layer_norm_eps)
        hidden = hidden + weights.linear(block + "mlp.fc2", activate(weights.linear(block + "mlp.fc1", normed)))
    inner = _gelu(weights.linear("projector.0", hidden[:, 1:]))
    return weights.linear("projector.2", inner)


def decoder_logits(
    checkpoint: Source,
    embeds: Array,
    positions: NDArray[np.intp] | None = None,
    dtype: type[np.floating[Any]] = np.float64,
) -> Array:
    """Return the logits of every position of one sequence.

    Args:
        checkpoint: Source of the weights.
        embeds: Rows of the embedding or of `image_embeds`, (n_tokens, n_embd).
        positions: Ascending positions, int (n_tokens,); 0, 1, 2, … by default.
        dtype: Float type of the computation.

    Returns:
        `dtype` (n_tokens, n_vocab).
    """
    config, weights = checkpoint.config.decoder, SourceWeights(checkpoint, dtype)
    hidden = embeds.astype(dtype)
    angles = np.outer(np.arange(len(hidden)) if positions is None else positions, inverse_frequencies(config))
    mask = np.triu(np.full((len(hidden), len(hidden)), -np.inf, dtype), 1)
    for layer in range(config.n_layer):
        block = f"model.layers.{layer}."
        normed = weights.rms_norm(block + "input_layernorm", hidden, config.rms_norm_eps)
        query, key, value = (
            _heads(weights.linear(f"{block}self_attn.{part}_proj", normed, bias=False), n_head)
            for part, n_head in (("q", config.n_head), ("k", config.n_head_kv), ("v", config.n_head_kv))
        )
        key, value = (np.repeat(part, config.n_head // config.n_head_kv, axis=0) for part in (key, value))
        context = _attend(_rotate(query, angles), _rotate(key, angles), value, mask)
        hidden = hidden + weights.linear(block + "self_attn.o_proj", context, bias=False)
        normed = weights.rms_norm(block + "post_attention_layernorm", hidden, config.rms_norm_eps)
        gate = weights.linear(block + "mlp.gate_proj", normed, bias=False)
        gate = gate / (1 + np.exp(-gate)) * weights.linear(block + "mlp.up_proj", normed, bias=False)
        hidden = hidden + weights.linear(block + "mlp.down_proj", gate, bias=False)
    normed = weights.rms_norm("model.norm", hidden, config.rms_norm_eps)
    return weights.linear("model.embed_tokens" if config.tied else "lm_head", normed, bias=False)


def inverse_frequencies(config: DecoderConfig) -> NDArray[np.float64]:
    """Return the rotation of each pair of dimensions, in radians per position, float64 (head_dim / 2,).

    Source: transformers `modeling_rope_utils._compute_llama3_parameters`.
    """
    frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    original = scaling.original_max_position_embeddings
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / scaling.high_freq_factor:
            scaled.append(frequency)
        elif wavelength > original / scaling.low_freq_factor:
            scaled.append(frequency / scaling.factor)
        else:
            smooth = original / wavelength - scaling.low_freq_factor
            smooth /= scaling.high_freq_factor - scaling.low_freq_factor
            scaled.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(scaled)


def _embed_patches(weights: SourceWeights, pixels: Array, patch: int) -> Array:
    side = pixels.shape[1] // patch
    cut = pixels[:, : side * patch, : side * patch].reshape(3, side, patch, side, patch)
    patches = cut.transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    kernel = weights["vision.embeddings.patch_embedding.weight"]
    tokens = [weights["vision.embeddings.class_embedding"][None], patches @ kernel.reshape(len(kernel), -1).T]
    placed: Array = np.concatenate(tokens) + weights["vision.embeddings.position_embedding.weight"]
    return placed


def _heads(x: Array, n_head: int) -> Array:
    """(…, n, n_head · d) to (…, n_head, n, d)."""
    heads: Array = x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)
    return heads


def _attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """(…, heads, n, d) each to (…, n, heads · d)."""
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]) + mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    context: Array = (shares / shares.sum(-1, keepdims=True)) @ value
    by_token = context.swapaxes(-3, -2)
    merged: Array = by_token.reshape(*by_token.shape[:-2], -1)
    return merged


def _rotate(x: Array, angles: NDArray[np.float64]) -> Array:
    """Rotate the two halves of each head against each other, as transformers does."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _quick_gelu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-1.702 * x))
    return result


def _gelu(x: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    # row by row to save memory, since np.vectorize turns each number into a Python object
    rows = [erf(row) for row in (x / math.sqrt(2)).reshape(-1, x.shape[-1])]
    result: Array = x / 2 * (1 + np.stack(rows).reshape(x.shape))
    return result
