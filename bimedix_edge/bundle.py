"""What a converted model on disk is: a directory with a manifest and exactly the files that it lists.

    manifest.json   format, names, sizes and hashes, and everything the runtime must know
    decoder.gguf    the language model
    vision.onnx     the vision encoder and the projector

`open_bundle` hashes every file before anything parses it: GGUF has no checksum, and a damaged one can end the process
or, worse, load as if nothing were wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bimedix_edge.errors import BundleError
from bimedix_edge.imaging.spec import Preprocessing
from bimedix_edge.prompt import PromptSpec

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Bundle",
    "DecoderSpec",
    "Fidelity",
    "FileEntry",
    "Manifest",
    "Quality",
    "VisionFidelity",
    "VisionSpec",
    "hash_file",
    "open_bundle",
    "read_manifest",
    "verify_bundle",
    "write_manifest",
]

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
ROLES = ("decoder", "vision")
_HASH_BLOCK_BYTES = 1 << 20
# one plain name: no separator of any system, no drive, nothing hidden, no `..`
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: a plain name, its size and its hash."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class DecoderSpec:
    """The decoder's shape, as the manifest states it; the GGUF must agree when it is loaded."""

    architecture: str
    file_type: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int


@dataclass(frozen=True)
class VisionSpec:
    """The encoder's interface: float32 (1, 3, size, size) in, float32 (1, n_tokens, n_embd) out."""

    n_tokens: int
    n_embd: int
    weights: str
    opset: int


@dataclass(frozen=True)
class Fidelity:
    """How close written numbers are to the checkpoint's.

    Attributes:
        relative_rms: root mean square of the differences, divided by that of the checkpoint's numbers.
        cosine: of the numbers, taken as one vector.
        n_tensors: how many tensors this is about.
    """

    relative_rms: float
    cosine: float
    n_tensors: int = 1


@dataclass(frozen=True)
class VisionFidelity:
    """How close the image tokens are to those of the tower in float32: the cosine of each token, over some images."""

    cosine_min: float = 0.0
    cosine_mean: float = 0.0
    n_images: int = 0
    choice: str = ""


@dataclass(frozen=True)
class Quality:
    """What the conversion measured; empty in a bundle of a version that measured nothing.

    Attributes:
        types: by ggml type, weighted by the tensors' sizes.
        worst: the tensors with the largest errors, by name.
        vision: of the encoder, and why it has the weights it has.
    """

    types: dict[str, Fidelity] = field(default_factory=dict)
    worst: dict[str, Fidelity] = field(default_factory=dict)
    vision: VisionFidelity = field(default=VisionFidelity())


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    name: str
    files: dict[str, FileEntry]
    decoder: DecoderSpec
    vision: VisionSpec
    prompt: PromptSpec
    preprocessing: Preprocessing
    source: dict[str, str]
    licence: str
    notice: str
    created_by: str
    format: Literal[1] = field(default=1)
    quality: Quality = field(default_factory=Quality)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are what its manifest says."""

    directory: Path
    manifest: Manifest

    def path(self, role: str) -> Path:
        """Return the path of the file with this role (`decoder` or `vision`)."""
        return self.directory / self.manifest.files[role].path


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Args:
        path: the file.
        progress: called with the number of bytes of each block read.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Parse and check the manifest of a bundle, without looking at its files.

    Raises:
        BundleError: it is missing, is no manifest, is of another format, or names a path outside the bundle.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise BundleError(f"Expected a bundle directory, but {directory} is none; see `bimedix-edge models list`.")
    if not path.is_file() or path.is_symlink():
        raise BundleError(
            f"Expected {MANIFEST} in {directory}, but there is none; "
            "give a converted bundle, or convert the checkpoint with `bimedix-edge convert`."
        )
    if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise BundleError(f"Expected at most {MAX_MANIFEST_BYTES} bytes in {path}, but it has {size}; convert again.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"Expected JSON in {path}, but it does not parse ({error}); convert again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise BundleError(
            f"Expected a bundle of format {FORMAT}, but {path} says {given!r}; "
            "convert the checkpoint with this version of bimedix-edge."
        )
    try:
        manifest: Manifest = _decode(Manifest, data, "manifest")
    except _Malformed as error:
        raise BundleError(f"Expected a whole manifest, but in {path} {error}; convert again.") from error
    _check_files(manifest, path)
    return manifest


def verify_bundle(directory: Path, progress: Callable[[int], None] | None = None, *, contents: bool = True) -> Manifest:
    """Check that a bundle holds exactly what its manifest lists, byte for byte.

    Args:
        directory: the bundle.
        progress: called with the number of bytes of each block hashed.
        contents: whether the files are read and hashed; otherwise only their names and sizes are checked.

    Raises:
        BundleError: a file is missing, extra, of another size or of other content; all of them are named.
    """
    manifest = read_manifest(directory)
    expected = {entry.path: entry for entry in manifest.files.values()}
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    faults += [f"{name} is not in the manifest" for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        if fault := _file_fault(directory / name, expected[name], progress, contents=contents):
            faults.append(f"{name} {fault}")
    if faults:
        raise BundleError(
            f"Expected {directory} to hold exactly what its manifest lists, but {'; '.join(faults)}; "
            "copy the bundle again or convert the checkpoint again."
        )
    return manifest


def open_bundle(directory: Path, progress: Callable[[int], None] | None = None) -> Bundle:
    """Verify a bundle and return it; nothing else in this package opens a model file.

    Raises:
        BundleError: see `verify_bundle`.
    """
    return Bundle(directory, verify_bundle(directory, progress))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, the last file of a bundle being made.

    Args:
        directory: a staged directory; see `staging.staged_directory`.
        manifest: its content.
    """
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _check_files(manifest: Manifest, path: Path) -> None:
    if sorted(manifest.files) != sorted(ROLES):
        raise BundleError(
            f"Expected the files {' and '.join(ROLES)} in {path}, but it lists {', '.join(sorted(manifest.files))}; "
            "convert again."
        )
    for role, entry in manifest.files.items():
        if not _FILE_NAME.fullmatch(entry.path):
            raise BundleError(
                f"Expected a plain file name for the {role} in {path}, but it says {entry.path!r}, which could point "
                "outside the bundle; do not use this bundle."
            )


def _file_fault(path: Path, entry: FileEntry, progress: Callable[[int], None] | None, *, contents: bool) -> str | None:
    if path.is_symlink() or not path.is_file():
        return "is not a regular file"
    if (size := path.stat().st_size) != entry.size_bytes:
        return f"has {size} bytes instead of {entry.size_bytes}"
    if contents and hash_file(path, progress) != entry.sha256:
        return "has other content than its sha256 says"
    return None


class _Malformed(Exception):
    """A manifest value of the wrong type; the message says which."""


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Build a dataclass (or dict, tuple, Literal, scalar) from JSON, refusing anything unexpected."""
    origin = get_origin(kind)
    if origin is Literal:
        return _require(value in get_args(kind), value, where, f"one of {get_args(kind)}")
    if origin in (Union, UnionType):
        raise TypeError(f"{where}: unions are not part of the manifest")
    if origin is dict:
        _require(isinstance(value, dict), value, where, "an object")
        return {str(key): _decode(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        parts = get_args(kind)
        _require(isinstance(value, list) and len(value) == len(parts), value, where, f"{len(parts)} values")
        pairs = enumerate(zip(parts, value, strict=True))
        return tuple(_decode(part, item, f"{where}[{index}]") for index, (part, item) in pairs)
    if hasattr(kind, "__dataclass_fields__"):
        return _decode_fields(kind, value, where)
    if kind is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_require(ok, value, where, "a number"))
    return _require(type(value) is kind, value, where, f"a value of type {kind.__name__}")


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, Mapping), value, where, "an object")
    hints = get_type_hints(kind)
    names = {item.name for item in fields(kind)}
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(required - value.keys()):
        raise _Malformed(f"{where} lacks {', '.join(missing)}")
    if extra := sorted(value.keys() - names):
        raise _Malformed(f"{where} has the unknown field {', '.join(extra)}")
    return kind(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in value})


def _require(ok: bool, value: Any, where: str, expected: str) -> Any:
    if not ok:
        raise _Malformed(f"{where} is {str(value)[:60]!r}, not {expected}")
    return value
