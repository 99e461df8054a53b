"""Where a decoder's layers, context and products go: `planning` decides it, `decoder` hands it to llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass

from bimedix_edge.decoder.kernels import AUTO

__all__ = ["KV_TYPES", "DecoderOptions", "Placement"]

# bytes of a block and values in it, as ggml stores keys and values
KV_TYPES: dict[str, tuple[int, int]] = {"f32": (4, 1), "f16": (2, 1), "q8_0": (34, 32)}


@dataclass(frozen=True)
class Placement:
    """What llama.cpp puts on which device; by default everything stays on the CPU.

    Attributes:
        n_gpu_layers: Number of layers that leave the CPU, counted from the last. The output layer is the first to go,
            so a model of 32 layers has 33. The token embeddings always stay.
        devices: ggml's names of the devices that take them, such as `CUDA0`; empty without such layers.
        split: Number of layers of each device, in that order; their sum is `n_gpu_layers`.
        kv_type: Type of the cached keys and values, one of `KV_TYPES`.
        kv_on_gpu: Whether a layer's keys and values lie where the layer does, not in the machine's memory.
        prefill_on_gpu: Whether a GPU also computes long prompts for the layers of the CPU. It gets a copy of their
            weights each time.
    """

    n_gpu_layers: int = 0
    devices: tuple[str, ...] = ()
    split: tuple[int, ...] = ()
    kv_type: str = "f16"
    kv_on_gpu: bool = True
    prefill_on_gpu: bool = True


@dataclass(frozen=True)
class DecoderOptions:
    """How a decoder is opened.

    Attributes:
        n_ctx: Number of KV cells, shared by all sequences.
        n_seq_max: Most sequences at a time.
        n_batch: Most positions of one evaluation.
        n_threads: Threads of the matrix products.
        kernels: Which kernels compute them, one of `kernels.CHOICES`.
        placement: What goes to which device, and how keys and values are stored.
    """

    n_ctx: int
    n_seq_max: int
    n_batch: int
    n_threads: int
    kernels: str = AUTO
    placement: Placement = Placement()
