"""Fetches a checkpoint from the hub: only the files that conversion reads, each checked against the hub's hash.

    CACHE/downloads/ORG--REPO/COMMIT/NAME          checked
    CACHE/downloads/ORG--REPO/COMMIT/.NAME.part    incomplete; the next run resumes it, also after kill -9

A file gets its name when its content has the hub's hash. Since a disk can lose bytes later, a run hashes the files of
earlier runs again. Pickled weights are never fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bimedix_edge.converters.decoder.quantize import FileType, row_bytes
from bimedix_edge.converters.hub.hub import RemoteFile, Snapshot, download
from bimedix_edge.converters.progress import StageProgress
from bimedix_edge.converters.source.strict_json import Fields, read_json
from bimedix_edge.errors import CheckpointError, HardwareError, NetworkError
from bimedix_edge.staging import disk_errors, exclusive, fsync_directory

__all__ = ["download_directory", "fetched"]

_REQUIRED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_OPTIONAL = ("generation_config.json", "special_tokens_map.json", "preprocessor_config.json")
_TOWER = ("config.json", "preprocessor_config.json")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_JSON_BYTES = 16 << 20
_MAX_DESCRIPTION_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# CLIP ViT-L/14-336 and the projector of the 70B in float32, with some room
_MAX_VISION_BYTES = 1_600_000_000
# mixtures spend more bits on some tensors than their base type: 4.9 instead of 4.5 for Q4_K_M
_MIXTURE = 1.15


def download_directory(cache: Path, snapshot: Snapshot) -> Path:
    """Return where the files of a snapshot are kept."""
    return cache / "downloads" / snapshot.repository.replace("/", "--") / snapshot.commit


@contextlib.contextmanager
def fetched(
    snapshot: Snapshot, directory: Path, *, target: Path, file_type: FileType, progress: StageProgress
) -> Iterator[None]:
    """Fetch the missing files of a checkpoint into a directory, and lock it while the block runs.

    Args:
        snapshot: The repository at the hub.
        directory: Directory from `download_directory`; it is created.
        target: Directory for the bundle, whose free space is checked.
        file_type: Type of the bundle's decoder, for the same check.
        progress: Called with a stage, the bytes done and the bytes in all.

    Raises:
        CheckpointError: The repository has no checkpoint in safetensors, or its index names missing files.
        NetworkError: The connection failed, or a file does not have the hub's hash; the error names it.
        HardwareError: The download and the bundle do not fit on the disk.
        UsageError: Another process is writing or converting the directory, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(directory))
            directory.mkdir(exist_ok=True)
            _bring(snapshot, _description(snapshot), directory, "description", progress)
            _bring(snapshot, _tower(snapshot, directory), directory, "description", progress)
            shards = _shards(snapshot, directory)
            _check_space(directory, target, shards, file_type)
            _bring(snapshot, shards, directory, "weights", progress)
        yield


def _description(snapshot: Snapshot) -> list[RemoteFile]:
    """Return the files that describe the weights, or refuse the repository."""
    if missing := [name for name in _REQUIRED if name not in snapshot.files]:
        raise CheckpointError(
            f"{snapshot.repository} is not a checkpoint: it has no {' and no '.join(missing)} "
            "whose hash the hub states. Name another repository."
        )
    if _INDEX not in snapshot.files and _SINGLE not in snapshot.files:
        raise CheckpointError(
            f"{snapshot.repository} has no weights in safetensors, neither {_SINGLE} nor {_INDEX}. Name another "
            "repository: other formats can run any program when they are opened, and are not fetched."
        )
    files = [snapshot.files[name] for name in (*_REQUIRED, *_OPTIONAL, _INDEX) if name in snapshot.files]
    if (size := sum(file.size_bytes for file in files)) > _MAX_DESCRIPTION_BYTES:
        raise CheckpointError(
            f"The configuration and tokenizer of {snapshot.repository} have {size} bytes, more than "
            f"{_MAX_DESCRIPTION_BYTES}. Name another repository."
        )
    return files


def _tower(snapshot: Snapshot, directory: Path) -> list[RemoteFile]:
    """Return the files that describe a vision tower which config.json names by a directory of the repository."""
    name = read_json(directory / "config.json", _MAX_JSON_BYTES).raw("mm_vision_tower")
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        return []
    return [snapshot.files[path] for item in _TOWER if (path := f"{name}/{item}") in snapshot.files]


def _shards(snapshot: Snapshot, directory: Path) -> list[RemoteFile]:
    """Return the files with weights: those that the index names, or the single one."""
    names = [_SINGLE]
    if _INDEX in snapshot.files:
        weight_map = read_json(directory / _INDEX, _MAX_JSON_BYTES).child("weight_map")
        names = sorted({_shard(weight_map, tensor) for tensor in weight_map.keys()})  # noqa: SIM118  not a dict
    if missing := [name for name in names if name not in snapshot.files]:
        raise CheckpointError(
            f"{_INDEX} of {snapshot.repository} names {missing[0][:80]!r}, which is missing there, or for which the "
            "hub states no hash. Name another repository or revision."
        )
    return [snapshot.files[name] for name in names]


def _shard(weight_map: Fields, tensor: str) -> str:
    name = weight_map.text(tensor)
    if not _FILE_NAME.fullmatch(name) or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{_INDEX} names {name[:80]!r} instead of safetensors files beside it. Do not use this checkpoint."
        )
    return name


def _check_space(directory: Path, target: Path, shards: list[RemoteFile], file_type: FileType) -> None:
    """Check that the rest of the download and the bundle fit, before the first byte of weights."""
    source = sum(file.size_bytes for file in shards)
    here = sum(_size(path) for file in shards for path in (directory / file.name, _part(directory / file.name)))
    missing, result = max(source - here, 0), _bundle_bytes(source, file_type)
    place = next(path for path in (target, *target.absolute().parents) if path.exists())
    free, free_target = shutil.disk_usage(directory).free, shutil.disk_usage(place).free
    shared = directory.stat().st_dev == place.stat().st_dev
    if free < missing + (result if shared else 0) or free_target < result:
        raise HardwareError(
            f"There is too little room. The download needs {missing / 1e9:.1f} GB in {directory}, which has "
            f"{free / 1e9:.1f} GB free, and the model needs {result / 1e9:.1f} GB in {place}, which has "
            f"{free_target / 1e9:.1f} GB free{' on the same disk' if shared else ''}. Free some space, or set "
            "BIMEDIX_EDGE_CACHE_DIR or BIMEDIX_EDGE_STORE_DIR to another disk."
        )


def _bundle_bytes(source_bytes: int, file_type: FileType) -> int:
    """Estimate the size of a bundle from weights of 2 bytes; conversion checks the exact size before it writes."""
    bytes_per_weight = row_bytes(file_type.base, 256) / 256
    return int(source_bytes / 2 * bytes_per_weight * _MIXTURE) + min(2 * source_bytes, _MAX_VISION_BYTES)


def _bring(snapshot: Snapshot, files: list[RemoteFile], directory: Path, stage: str, progress: StageProgress) -> None:
    total = sum(file.size_bytes for file in files)
    before = 0
    for file in files:
        final = directory / file.name
        with disk_errors(final):
            final.parent.mkdir(exist_ok=True)
            if not _is_here(final, file, progress):
                _bring_file(snapshot, file, final, _from(stage, before, total, progress), progress)
        before += file.size_bytes
        progress(stage, before, total)


def _is_here(final: Path, file: RemoteFile, progress: StageProgress) -> bool:
    if not final.exists():
        return False
    if _size(final) == file.size_bytes and _digest(final, file, progress) == file.digest:
        return True
    final.unlink()
    return False


def _bring_file(
    snapshot: Snapshot, file: RemoteFile, final: Path, arrived: Callable[[int], None], progress: StageProgress
) -> None:
    part = _part(final)
    if _size(part) > file.size_bytes:
        part.unlink()
    download(snapshot, file, part, arrived)
    if (digest := _digest(part, file, progress)) != file.digest:
        part.unlink()
        raise NetworkError(
            f"{file.name} arrived damaged: its {_algorithm(file)} is {digest[:16]}…, and the hub states "
            f"{file.digest[:16]}…. It was deleted and nothing was installed. Run the command again to fetch it."
        )
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(part, final)
    fsync_directory(final.parent)


def _digest(path: Path, file: RemoteFile, progress: StageProgress) -> str:
    """Return a file's hash by the algorithm of the hub's hash."""
    # git hashes a header and the content, by SHA-1
    digest = hashlib.sha256() if file.algorithm == "sha256" else hashlib.sha1(usedforsecurity=False)
    if file.algorithm == "git":
        digest.update(b"blob %d\0" % file.size_bytes)
    with path.open("rb", buffering=0) as handle:
        while block := handle.read(_BLOCK_BYTES):
            digest.update(block)
            progress("check", handle.tell(), file.size_bytes)
    return digest.hexdigest()


def _algorithm(file: RemoteFile) -> str:
    return "SHA-256" if file.algorithm == "sha256" else "git hash"


def _from(stage: str, before: int, total: int, progress: StageProgress) -> Callable[[int], None]:
    return lambda n_bytes: progress(stage, before + n_bytes, total)


def _part(final: Path) -> Path:
    return final.with_name(f".{final.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
