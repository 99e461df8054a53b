"""Estimates the memory that a model takes from the headers of its files alone; nothing is loaded.

The estimate is for the peak of an answer with a full context. It counts the resident pages of the process, those of
mapped files included. Formulas from llama.cpp name its function; measured numbers say how they were measured.
`tests/planning/test_memory.py` compares the estimate with the peak of real processes.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, fields
from pathlib import Path

from bimedix_edge.bundle import DecoderSpec, Manifest
from bimedix_edge.decoder.gguf_header import GgufHeader, read_header
from bimedix_edge.decoder.placement import KV_TYPES, Placement
from bimedix_edge.errors import BundleError

__all__ = [
    "DecoderFacts",
    "HostNeed",
    "LlamaBuild",
    "Load",
    "compute_bytes",
    "device_need",
    "host_need",
    "kv_bytes",
    "layers_need",
    "n_cells",
    "read_facts",
    "vision_need",
]

_F32_BYTES, _F16_BYTES = 4, 2
# llama_context: a context has a multiple of this many cells
_CELLS = 256
_LAYER = re.compile(r"blk\.(\d{1,4})\.")
_EMBEDDING, _OUTPUT, _OUTPUT_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
# ggml_repack_get_optimal_repack_type on x86-64: Q4_0 and Q4_K
_REPACKED_TYPES = frozenset({2, 12})
# vectors of the model's width, and of the feed-forward layer's, that a token's graph holds at once: llama.cpp logs the
# need of ggml_backend_sched's allocator; the same for the demo's, the 1B's and the 8B's shape. Our kernels reorder the
# graph, which saves one vector
_WIDE, _WIDE_KERNELS, _HIDDEN = 4, 3, 3
# our kernels fuse the gate and the up projection, so these two are never written
_FUSED = 2
# bytes of one activation rounded for our kernels, with its share of scales and sums (kernels/matmul.cpp, `place`)
_ROUNDED_BYTES = 1.45
# with all layers on GPUs, the CPU still looks up the embeddings and hands them over
_WIDE_LOOKED_UP = 2
# measured, Python 3.11 on Linux: the interpreter with numpy, both engines and the command line, before a model is
# loaded; llama.cpp's graphs and bookkeeping; its vocabulary, per token
_PROCESS_BYTES = 84 << 20
_CONTEXT_BYTES = 13 << 19
_VOCABULARY_BYTES = 154
# measured, ViT-L/14-336 and the demo's encoder: ONNX Runtime's weights as a multiple of the file, since it keeps both
# the original and the rearranged weights of products; a session without weights; and the results of a graph, per value
# of the embeddings
_VISION_WEIGHTS = {"int8": 1.94, "int8_weights": 2.73, "float32": 1.36, "float16": 1.36}
# our kernels use int8 weights in place, and need scratch memory
_VISION_WEIGHTS_OURS = 1.16
_VISION_ROOM_BYTES = 2 << 20
_VISION_SESSION_BYTES = 3 << 20
_VISION_RESULT_BYTES = 33


@dataclass(frozen=True)
class DecoderFacts:
    """Sizes of a decoder, from its GGUF's header.

    Attributes:
        spec: Shape of the decoder, from the manifest.
        n_ff: Width of the feed-forward layers.
        file_bytes: Bytes of the file.
        embedding_bytes: Bytes of the token embeddings, which are only looked up.
        layer_bytes: Bytes of each layer's weights.
        output_bytes: Bytes of the output layer; those of the embeddings if the model shares the two.
        largest_bytes: Bytes of the largest weight of a layer.
        repacked_bytes: Bytes of the weights that llama.cpp rearranges where our kernels do not compute.
    """

    spec: DecoderSpec
    n_ff: int
    file_bytes: int
    embedding_bytes: int
    layer_bytes: tuple[int, ...]
    output_bytes: int
    largest_bytes: int
    repacked_bytes: int

    @property
    def n_layer(self) -> int:
        """Return how many layers can be offloaded: those of the model, and the output layer."""
        return len(self.layer_bytes) + 1


@dataclass(frozen=True)
class Load:
    """How much a decoder holds and computes at once.

    Attributes:
        n_ctx: Context length in tokens.
        n_batch: Maximum number of tokens in one batch.
        n_seq_max: Maximum number of sequences in the KV cache.
    """

    n_ctx: int
    n_batch: int
    n_seq_max: int


@dataclass(frozen=True)
class LlamaBuild:
    """How the installed llama.cpp computes layers on the CPU.

    Attributes:
        kernels: Whether our kernels compute them.
        repacks: Whether llama.cpp keeps rearranged copies of weights otherwise; see `decoder.llama.repacks`.
        version: Version of llama-cpp-python, for the command that adds a GPU.
    """

    kernels: bool
    repacks: bool = False
    version: str = ""


@dataclass(frozen=True)
class HostNeed:
    """What the machine's memory must hold, in bytes.

    Attributes:
        weights: Weights of the decoder's layers on the CPU.
        repacked: llama.cpp's rearranged copies of them.
        kv: The KV cache.
        compute: llama.cpp's buffers for results, and our kernels' scratch memory.
        vision: The image encoder.
        process: Python, the engines and the vocabulary.
    """

    weights: int
    repacked: int
    kv: int
    compute: int
    vision: int
    process: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return sum(getattr(self, field.name) for field in fields(self))


def read_facts(path: Path, spec: DecoderSpec) -> DecoderFacts:
    """Read the sizes of a decoder's tensors.

    Args:
        path: Path of the GGUF file, already verified against its bundle's manifest.
        spec: Shape of the decoder, from the manifest.

    Raises:
        BundleError: The file is not a GGUF, or not the decoder that the manifest describes.
    """
    try:
        return _facts(*_header(path), spec)
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"{path.name} cannot be read as a decoder of {spec.n_layer} layers ({error}). Convert the checkpoint again."
        ) from error


def _header(path: Path) -> tuple[GgufHeader, int]:
    """Return a GGUF's header, and the size of the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return read_header(memoryview(data)), len(data)
        except ValueError as error:
            fault = str(error)
        # raised outside: the first error's frames still refer to the map, which then could not be closed
    raise ValueError(fault)


def _facts(header: GgufHeader, file_bytes: int, spec: DecoderSpec) -> DecoderFacts:
    tensors = header.tensors
    # a tensor ends where the next one begins, so that no block sizes of types are needed
    starts = sorted(tensor.start for tensor in tensors.values())
    ends = dict(zip(starts, [*starts[1:], file_bytes], strict=True))
    sizes = {name: ends[tensor.start] - tensor.start for name, tensor in tensors.items()}
    layers = [0] * spec.n_layer
    for name, size in sizes.items():
        if match := _LAYER.match(name):
            if int(match[1]) >= spec.n_layer:
                raise ValueError(f"it has a layer {match[1]}")
            layers[int(match[1])] += size
    if not all(layers):
        raise ValueError(f"layer {layers.index(0)} has no tensors")
    return DecoderFacts(
        spec=spec,
        n_ff=tensors["blk.0.ffn_up.weight"].dims[-1],
        file_bytes=file_bytes,
        embedding_bytes=sizes[_EMBEDDING],
        layer_bytes=tuple(layers),
        output_bytes=sizes.get(_OUTPUT, sizes[_EMBEDDING]) + sizes[_OUTPUT_NORM],
        largest_bytes=max(size for name, size in sizes.items() if _LAYER.match(name)),
        repacked_bytes=sum(
            size for name, size in sizes.items() if tensors[name].kind in _REPACKED_TYPES and name != _EMBEDDING
        ),
    )


def n_cells(n_ctx: int) -> int:
    """Return the number of cells that llama.cpp allocates for a context: a multiple of 256."""
    return -(-n_ctx // _CELLS) * _CELLS


def kv_bytes(spec: DecoderSpec, n_layer: int, n_ctx: int, kv_type: str) -> int:
    """Return the size of some layers' KV cache in bytes.

    Source: `llama_kv_cache`, which has two rows of `n_head_kv * head_dim` values for each cell.
    """
    block_bytes, block_values = KV_TYPES[kv_type]
    row = spec.n_head_kv * spec.head_dim // block_values * block_bytes
    return 2 * n_layer * row * n_cells(n_ctx)


def compute_bytes(facts: DecoderFacts, load: Load, *, with_output: bool, n_wide: int = _WIDE) -> int:
    """Return the size of llama.cpp's buffers for the results of one batch on one device, in bytes.

    Source: `llama_context::sched_reserve`, with flash attention. At its peak, a token holds its feed-forward layer's
    gate, up and product beside some vectors of the model's width; the mask has two bytes for each token and cell.
    """
    spec, n = facts.spec, min(load.n_batch, load.n_ctx)
    layer = n * _F32_BYTES * (_HIDDEN * facts.n_ff + n_wide * spec.n_embd)
    n_outputs = min(load.n_seq_max, n)
    output = n_outputs * _F32_BYTES * spec.n_vocab + n_wide * n * _F32_BYTES * spec.n_embd if with_output else 0
    return max(layer, output) + _F16_BYTES * n * n_cells(load.n_ctx)


def host_need(
    facts: DecoderFacts, load: Load, placement: Placement, build: LlamaBuild, *, vision_bytes: int = 0
) -> HostNeed:
    """Return what the machine's memory must hold.

    Args:
        facts, load, placement: The decoder, its context and batch, and its place.
        build: How the CPU computes its layers.
        vision_bytes: Bytes of the image encoder, if it is not on a device of its own; see `vision_need`.
    """
    spec, on_gpu = facts.spec, placement.n_gpu_layers
    kept = range(facts.n_layer - on_gpu)
    kv_layers = len(kept[: spec.n_layer]) if placement.kv_on_gpu else spec.n_layer
    # in proportion to the layers that stay
    repacked = facts.repacked_bytes * len(kept) // facts.n_layer if build.repacks and not build.kernels else 0
    return HostNeed(
        weights=facts.file_bytes - layers_bytes(facts, range(len(kept), facts.n_layer)),
        repacked=repacked,
        kv=kv_bytes(spec, kv_layers, load.n_ctx, placement.kv_type),
        compute=_host_compute(facts, load, n_layers=len(kept), kernels=build.kernels)
        + load.n_seq_max * spec.n_vocab * _F32_BYTES,
        vision=vision_bytes,
        process=_PROCESS_BYTES + _CONTEXT_BYTES + spec.n_vocab * _VOCABULARY_BYTES,
    )


def _host_compute(facts: DecoderFacts, load: Load, *, n_layers: int, kernels: bool) -> int:
    """Return the size of the CPU's buffers for results in bytes, without pages that are never written."""
    n = min(load.n_batch, load.n_ctx)
    if n_layers == 0:
        return n * (_WIDE_LOOKED_UP * facts.spec.n_embd * _F32_BYTES + _F16_BYTES * n_cells(load.n_ctx))
    if not kernels:
        return compute_bytes(facts, load, with_output=n_layers == facts.n_layer)
    whole = compute_bytes(facts, load, with_output=n_layers == facts.n_layer, n_wide=_WIDE_KERNELS)
    return whole + int(n * facts.n_ff * (_ROUNDED_BYTES - _FUSED * _F32_BYTES))


def layers_need(facts: DecoderFacts, load: Load, placement: Placement, layers: range) -> int:
    """Return what a device must hold for adjacent layers, in bytes; the output layer counts as the one after the last.

    Args:
        facts, load: The decoder, its context and batch.
        placement: Placement; only its KV cache and its number of offloaded layers matter.
        layers: Layers of the device. The first device of all also multiplies long prompts with the CPU's layers, and
            needs room for a copy of the largest weight.
    """
    if not layers:
        return 0
    has_output = layers[-1] == facts.spec.n_layer
    n_kv = len(layers) - has_output if placement.kv_on_gpu else 0
    need = layers_bytes(facts, layers) + kv_bytes(facts.spec, n_kv, load.n_ctx, placement.kv_type)
    need += compute_bytes(facts, load, with_output=has_output)
    if placement.prefill_on_gpu and 0 < layers[0] == facts.n_layer - placement.n_gpu_layers:
        need += facts.largest_bytes
    return need


def device_need(facts: DecoderFacts, load: Load, placement: Placement, index: int) -> int:
    """Return what the `index`-th of a placement's devices must hold, in bytes."""
    first = facts.n_layer - placement.n_gpu_layers + sum(placement.split[:index])
    return layers_need(facts, load, placement, range(first, first + placement.split[index]))


def layers_bytes(facts: DecoderFacts, layers: range) -> int:
    """Return the size of some layers' weights in bytes; the output layer counts as the one after the last."""
    sizes = [*facts.layer_bytes, facts.output_bytes]
    return sum(sizes[layer] for layer in layers)


def vision_need(manifest: Manifest, *, kernels: bool) -> int:
    """Return the memory that the image encoder takes, in bytes.

    Args:
        manifest: Manifest of the bundle.
        kernels: Whether our kernels compute it.
    """
    vision = manifest.vision
    size = manifest.files["vision"].size_bytes
    if kernels:
        weights = size * _VISION_WEIGHTS_OURS + _VISION_ROOM_BYTES
    else:
        weights = size * _VISION_WEIGHTS.get(vision.weights, max(_VISION_WEIGHTS.values()))
    return int(weights) + _VISION_SESSION_BYTES + vision.n_tokens * vision.n_embd * _VISION_RESULT_BYTES
