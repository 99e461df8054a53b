"""Checkpoints of full size with random, untrained weights, for tests and benchmarks.

    python -m bimedix_edge.converters.synthetic.checkpoint --shape 8b --layout llava --dtype bf16 --shards 4 OUT

Each weight depends only on the seed, its tensor's name and its place. All layouts, dtypes and numbers of shards have
the same values, since all are rounded to values that bfloat16 and float16 can both represent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.parts import in_order
from bimedix_edge.converters.synthetic.config import (
    SHAPES,
    Shape,
    original_config,
    published_name,
    tensor_shapes,
    transformers_config,
    vision_config,
)
from bimedix_edge.converters.synthetic.tokenizer import real_tokenizer_json, tokenizer_config, tokenizer_json
from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.staging import staged_directory

__all__ = ["LAYOUTS", "PLAIN", "Storage", "generate", "weight_blocks"]

LAYOUTS = {"llava": "original", "hf-old": "transformers_old", "hf-new": "transformers_new"}
_ITEM_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
_BLOCK_VALUES = 1 << 21
# float16 represents bfloat16's 8 bits exactly down to this size
_SMALLEST = 2.0**-16
_Tensors = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Storage:
    """How a generated checkpoint is stored.

    Attributes:
        layout: A key of `LAYOUTS`.
        dtype: `bf16`, `f16` or `f32`.
        n_shards: 1 for model.safetensors; with more, an index lists the shards.
        vocabulary: `ggml-vocab-llama-bpe.gguf`; by default, a few hundred tokens.
    """

    layout: str = "llava"
    dtype: str = "bf16"
    n_shards: int = 1
    vocabulary: Path | None = None


PLAIN = Storage()


def generate(directory: Path, shape: Shape, storage: Storage = PLAIN, *, seed: int = 0) -> None:
    """Write a checkpoint with random weights.

    Args:
        directory: Directory to create.
        shape: Shape of the model, such as one of `SHAPES`.
        storage: How the weights and the tokenizer are stored; it does not change the weights.
        seed: Seed of the weights.

    Raises:
        UsageError: The directory exists or cannot be written.
        HardwareError: The disk is full.
    """
    layout, dtype, n_shards = LAYOUTS[storage.layout], storage.dtype, storage.n_shards
    with staged_directory(directory) as part, ThreadPoolExecutor(os.cpu_count()) as pool:
        _write_description(part, shape, layout, storage.vocabulary)
        tensors = tensor_shapes(shape)
        shards = _split(tensors, n_shards, _ITEM_BYTES[dtype])
        weight_map: dict[str, str] = {}
        for index, names in enumerate(shards):
            file = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors" if n_shards > 1 else "model.safetensors"
            own = {published_name(name, layout): name for name in names}
            blocks = {key: (tensors[name], weight_blocks(name, tensors[name], seed)) for key, name in own.items()}
            _write_shard(part / file, blocks, dtype, pool)
            weight_map |= dict.fromkeys(own, file)
        if n_shards > 1:
            total = sum(math.prod(size) for size in tensors.values()) * _ITEM_BYTES[dtype]
            index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(part / "model.safetensors.index.json", index_json)


def weight_blocks(name: str, size: tuple[int, ...], seed: int) -> Iterator[Callable[[], NDArray[np.float32]]]:
    """Yield functions that return a tensor's values block by block and may run in parallel.

    Args:
        name: Canonical name.
        size: Its shape.
        seed: Seed of the checkpoint.

    Yields:
        Functions that return float32 (n,).
    """
    n_values = math.prod(size)
    fan_in = math.prod(size[1:]) if len(size) > 1 else 16
    mean, sigma = 0.0, fan_in**-0.5
    if "norm" in name and name.endswith("weight"):
        mean, sigma = 1.0, 0.1
    elif "embed" in name:
        sigma = 0.5
    for start in range(0, n_values, _BLOCK_VALUES):
        key = (seed, zlib.crc32(name.encode()), start)
        yield partial(_block, key, min(_BLOCK_VALUES, n_values - start), mean, sigma)


def _block(key: tuple[int, int, int], n_values: int, mean: float, sigma: float) -> NDArray[np.float32]:
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
    values = rng.standard_normal(n_values, np.float32)
    values *= np.float32(sigma)
    values += np.float32(mean)
    values[np.abs(values) < _SMALLEST] = 0
    values.view(np.uint32)[...] &= np.uint32(0xFFFF0000)
    return values


def _split(tensors: _Tensors, n_shards: int, item_bytes: int) -> list[list[str]]:
    """Distribute tensors, in order, over shards of about equal size."""
    total = sum(math.prod(size) for size in tensors.values()) * item_bytes
    shards: list[list[str]] = [[] for _ in range(n_shards)]
    done = 0
    for name, size in tensors.items():
        shards[min(done * n_shards // total, n_shards - 1)].append(name)
        done += math.prod(size) * item_bytes
    return shards


def _write_shard(
    path: Path,
    tensors: dict[str, tuple[tuple[int, ...], Iterator[Callable[[], NDArray[np.float32]]]]],
    dtype: str,
    pool: ThreadPoolExecutor,
) -> None:
    """Write safetensors as its own library does: tensors by name, the header padded to eight bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in sorted(tensors):
        size = tensors[name][0]
        stop = position + math.prod(size) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype.upper(), "shape": size, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    steps = (partial(_encoded, block, dtype) for name in sorted(tensors) for block in tensors[name][1])
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in in_order(steps, pool, 4):
            file.write(data)


def _encoded(block: Callable[[], NDArray[np.float32]], dtype: str) -> memoryview:
    values = block()
    encoded: NDArray[Any] = values
    if dtype == "bf16":  # the upper half of float32
        encoded = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    elif dtype == "f16":
        encoded = values.astype(np.float16)
    data: memoryview = encoded.view(np.uint8).data
    return data


def _write_description(directory: Path, shape: Shape, layout: str, vocabulary: Path | None) -> None:
    config = original_config(shape) if layout == "original" else transformers_config(shape)
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer.json", real_tokenizer_json(vocabulary) if vocabulary else tokenizer_json())
    _write_json(directory / "tokenizer_config.json", tokenizer_config())
    if layout == "original":
        (directory / "vision_tower").mkdir()
        tower = {"model_type": "clip_vision_model", **vision_config(shape)}
        _write_json(directory / "vision_tower" / "config.json", tower)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _main() -> int:
    parser = argparse.ArgumentParser(prog="generate", description="Write a checkpoint with random weights.")
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--layout", choices=LAYOUTS, default="llava")
    parser.add_argument("--dtype", choices=_ITEM_BYTES, default="bf16")
    parser.add_argument("--shards", type=int, default=1, choices=range(1, 100), metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=Path, metavar="GGUF", help="ggml-vocab-llama-bpe.gguf")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    try:
        generate(
            given.output,
            SHAPES[given.shape],
            Storage(given.layout, given.dtype, given.shards, given.vocabulary),
            seed=given.seed,
        )
    except BimedixEdgeError as error:
        sys.stderr.write(f"generate: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
