"""Where a decoder's layers, its context and its products go: what `fit` decides and `decoder` hands to llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KV_TYPES", "Placement"]

# bytes of a block and values in it, as ggml stores keys and values
KV_TYPES: dict[str, tuple[int, int]] = {"f32": (4, 1), "f16": (2, 1), "q8_0": (34, 32)}


@dataclass(frozen=True)
class Placement:
    """How llama.cpp is to load a decoder; by default everything stays with the CPU.

    Attributes:
        n_gpu_layers: how many layers leave the CPU, counted from the last: the output layer is the first to go, so that
            a model of 32 layers has 33. The token embeddings always stay.
        devices: ggml's names of the devices that take them, such as `CUDA0`; none without such layers.
        split: layers of each device, in that order; their sum is `n_gpu_layers`.
        kv_type: of the cached keys and values, one of `KV_TYPES`.
        kv_on_gpu: whether a layer's keys and values lie where the layer does, not in the machine's memory.
        prefill_on_gpu: whether a GPU multiplies long prompts with the CPU's layers, too, for which it gets a
            copy of the weights each time.
    """

    n_gpu_layers: int = 0
    devices: tuple[str, ...] = ()
    split: tuple[int, ...] = ()
    kv_type: str = "f16"
    kv_on_gpu: bool = True
    prefill_on_gpu: bool = True
