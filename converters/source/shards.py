"""The safetensors files of a checkpoint: one, or several that an index lists."""

from __future__ import annotations

import re
from pathlib import Path

from bimedix_edge.converters.source.safetensors_file import SafetensorsFile, is_pickle
from bimedix_edge.converters.source.strict_json import Fields, read_json
from bimedix_edge.errors import CheckpointError

__all__ = ["open_shards"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# the 70B checkpoint's has about 110 KB
_MAX_INDEX_BYTES = 2 << 20
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def open_shards(directory: Path) -> list[SafetensorsFile]:
    """Open the safetensors files of a checkpoint, in order; they may be links, as in the cache of huggingface-hub.

    Raises:
        CheckpointError: The directory has no safetensors file, one is missing or damaged, or the index names a file
            outside the directory or disagrees with the files.
    """
    if not (directory / _INDEX).exists():
        if not (directory / _SINGLE).exists():
            raise _no_weights(directory)
        return [SafetensorsFile(directory / _SINGLE)]
    weight_map = read_json(directory / _INDEX, _MAX_INDEX_BYTES).child("weight_map")
    listed = {(name, _shard(weight_map, name)) for name in weight_map.keys()}  # noqa: SIM118  not a dict
    shards = [SafetensorsFile(directory / name) for name in sorted({shard for _, shard in listed})]
    present = {(name, file.path.name) for file in shards for name in file.entries}
    for where, pairs in (("is listed but not in", listed - present), ("is not listed but in", present - listed)):
        if pairs:
            name, shard = min(pairs)
            more = f", and {len(pairs) - 1} more like it" if len(pairs) > 1 else ""
            raise CheckpointError(
                f"{_INDEX} does not match the shards: {name[:120]} {where} {shard}{more}. "
                "Download the checkpoint again."
            )
    return shards


def _shard(weight_map: Fields, tensor: str) -> str:
    name = weight_map.text(tensor)
    if not _FILE_NAME.fullmatch(name):
        raise CheckpointError(
            f"{_INDEX} names the file {name[:80]!r}, which could lie outside the checkpoint. "
            "Do not use this checkpoint."
        )
    return name


def _no_weights(directory: Path) -> CheckpointError:
    """Name what the directory has instead of safetensors; a pickle is recognised by its first bytes, not opened."""
    for path in sorted(directory.iterdir()):
        if path.is_file() and (path.suffix in _PICKLE_SUFFIXES or _starts_as_pickle(path)):
            return CheckpointError(
                f"{directory} has no safetensors, only {path.name}, a pickle, which can run any program when it is "
                "opened. It was not opened. Get the checkpoint in safetensors."
            )
    return CheckpointError(f"{directory} has neither {_SINGLE} nor {_INDEX}. Give the directory of a whole checkpoint.")


def _starts_as_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_pickle(file.read(9))
    except OSError:
        return False
