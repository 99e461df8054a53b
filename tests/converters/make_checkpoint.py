"""Tiny random checkpoints in every published layout, written with the safetensors package as their publishers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from bimedix_edge.converters.synthetic.checkpoint import weight_blocks
from bimedix_edge.converters.synthetic.config import (
    Shape,
    original_config,
    published_name,
    tensor_shapes,
    transformers_config,
    vision_config,
)
from bimedix_edge.converters.synthetic.tokenizer import MERGES, SPECIALS, tokenizer_config, tokenizer_json

__all__ = [
    "MERGES",
    "SPECIALS",
    "Edits",
    "Form",
    "Shape",
    "edit_json",
    "make_checkpoint",
    "original_config",
    "published_name",
    "tensor_values",
    "tokenizer_config",
    "tokenizer_json",
    "transformers_config",
    "vision_config",
    "write_json",
]

TINY = Shape()
DTYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}


Edit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Form:
    """The form in which a checkpoint is published.

    Attributes:
        layout: `original`, `transformers_old` or `transformers_new`.
        dtype: `bf16`, `f16` or `f32`; the values are the same, since all are rounded to bfloat16's 8 bits and a
            range that float16 holds.
        n_shards: 1 is model.safetensors, more is an index.
        pairs: Whether merges are pairs instead of strings.
        tower: `inside` the shards, or left out (`absent`).
    """

    layout: str = "original"
    dtype: str = "bf16"
    n_shards: int = 1
    pairs: bool = False
    tower: str = "inside"


@dataclass(frozen=True)
class Edits:
    """Functions that change what is written, in place: the tensors by name, config.json, tokenizer.json."""

    tensors: Edit | None = None
    config: Edit | None = None
    tokenizer: Edit | None = None


PLAIN, UNCHANGED = Form(), Edits()


def make_checkpoint(
    directory: Path, *, shape: Shape = TINY, form: Form = PLAIN, edits: Edits = UNCHANGED, seed: int = 0
) -> Path:
    """Write a checkpoint of random weights and return its directory, which is created."""
    layout = form.layout
    directory.mkdir(parents=True)
    config = original_config(shape) if layout == "original" else transformers_config(shape)
    tensors = {
        published_name(name, layout): array.astype(DTYPES[form.dtype])
        for name, array in tensor_values(shape, seed).items()
    }
    if form.tower == "absent":
        tensors = {name: array for name, array in tensors.items() if "vision_tower" not in name}
    tensors[published_name("vision.embeddings.position_ids", layout)] = np.arange(5, dtype=np.int64)[None]
    tokenizer = tokenizer_json(pairs=form.pairs)
    for edit, value in ((edits.tensors, tensors), (edits.config, config), (edits.tokenizer, tokenizer)):
        if edit is not None:
            edit(value)
    _write_shards(directory, tensors, form.n_shards)
    write_json(directory / "config.json", config)
    write_json(directory / "tokenizer.json", tokenizer)
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    if layout == "original":
        (directory / "vision_tower").mkdir()
        write_json(
            directory / "vision_tower" / "config.json", {"model_type": "clip_vision_model", **vision_config(shape)}
        )
    return directory


def tensor_values(shape: Shape, seed: int) -> dict[str, Any]:
    """Return random weights under canonical names, as float32 values that bfloat16 and float16 hold exactly."""
    return {
        name: np.concatenate([block() for block in weight_blocks(name, size, seed)]).reshape(size)
        for name, size in tensor_shapes(shape).items()
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    write_json(path, value)


def _write_shards(directory: Path, tensors: dict[str, Any], n_shards: int) -> None:
    if n_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for index in range(n_shards):
        shard = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::n_shards]}
        save_file(part, directory / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    total = sum(array.nbytes for array in tensors.values())
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
