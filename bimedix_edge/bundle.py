"""The format of a converted model on disk: a directory with a manifest and exactly the files that it lists.

    manifest.json   format, names, sizes and hashes, and everything the runtime must know
    decoder.gguf    the language model
    vision.onnx     the vision encoder and the projector

`open_bundle` hashes every file before anything parses it: GGUF has no checksum, and a damaged one can end the process
or, worse, load without an error.

A manifest may come from anyone. Each field states its range, since the runtime allocates memory by these numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

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
_MAX_SHOWN = 60
# one plain name: no separator of any system, no drive, no leading dot, no `..`
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_PHRASES = (
    (r"of length <= (\d+)", r"of at most \1 characters"),
    ("matching regex", "that matches"),
    (", got", ", not"),
    ("<=", "of at most"),
    (">=", "of at least"),
    (">", "above"),
)

Name = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=1 << 24)]
Cosine = Annotated[float, Meta(ge=-1, le=1)]


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: a plain name, its size and its hash."""

    path: str
    size_bytes: Annotated[int, Meta(ge=1, le=1 << 44)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


@dataclass(frozen=True)
class DecoderSpec:
    """The decoder's shape, as the manifest states it; the GGUF must agree when it is loaded."""

    architecture: Name
    file_type: Name
    n_layer: Annotated[int, Meta(ge=1, le=1 << 10)]
    n_embd: Annotated[int, Meta(ge=1, le=1 << 17)]
    n_head: Annotated[int, Meta(ge=1, le=1 << 12)]
    n_head_kv: Annotated[int, Meta(ge=1, le=1 << 12)]
    head_dim: Annotated[int, Meta(ge=1, le=1 << 12)]
    n_vocab: Annotated[int, Meta(ge=1, le=1 << 22)]
    n_ctx_train: Annotated[int, Meta(ge=1, le=1 << 30)]


@dataclass(frozen=True)
class VisionSpec:
    """The encoder's interface: float32 (1, 3, size, size) in, float32 (1, n_tokens, n_embd) out."""

    n_tokens: Annotated[int, Meta(ge=1, le=1 << 16)]
    n_embd: Annotated[int, Meta(ge=1, le=1 << 17)]
    weights: Name
    opset: Annotated[int, Meta(ge=1, le=100)]


@dataclass(frozen=True)
class Fidelity:
    """How close written numbers are to the checkpoint's.

    Attributes:
        relative_rms: Root mean square of the differences, divided by that of the checkpoint's numbers.
        cosine: Cosine of the angle between written and original numbers, each taken as one vector.
        n_tensors: Number of tensors measured.
    """

    relative_rms: Annotated[float, Meta(ge=0, le=1e38)]
    cosine: Cosine
    n_tensors: Count = 1


@dataclass(frozen=True)
class VisionFidelity:
    """How close the image tokens are to those of the float32 encoder, measured on sample images.

    Attributes:
        cosine_min: Lowest cosine of any token.
        cosine_mean: Mean cosine of all tokens.
        n_images: Number of sample images.
        choice: Why the encoder has these weights.
    """

    cosine_min: Cosine = 0.0
    cosine_mean: Cosine = 0.0
    n_images: Count = 0
    choice: str = ""


@dataclass(frozen=True)
class Quality:
    """What the conversion measured; empty in bundles of versions that measured nothing.

    Attributes:
        types: Fidelity of each ggml type, weighted by the tensors' sizes.
        worst: Fidelity of the tensors with the largest errors, by tensor name.
        vision: Fidelity of the image encoder.
    """

    types: dict[str, Fidelity] = field(default_factory=dict)
    worst: dict[str, Fidelity] = field(default_factory=dict)
    vision: VisionFidelity = field(default=VisionFidelity())


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    name: Name
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
        path: Path of the file.
        progress: Called with the number of bytes of each block read.
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
        BundleError: The manifest is missing, too large, not JSON or of another format; or a field is missing, unknown,
            repeated, of the wrong type or out of its range.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise BundleError(f"{directory} is not a bundle directory. `bimedix-edge models list` shows installed models.")
    if not path.is_file() or path.is_symlink():
        raise BundleError(
            f"{directory} has no {MANIFEST}, so it is not a bundle. Give a converted bundle, or convert the checkpoint "
            "with `bimedix-edge convert`."
        )
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path} is too large for a manifest, which has at most {MAX_MANIFEST_BYTES} bytes. "
            "Convert the checkpoint again."
        )
    try:
        return _decode(data, path)
    except _InvalidError as error:
        raise BundleError(f"{path} is damaged: {error}. Convert the checkpoint again.") from error


def verify_bundle(directory: Path, progress: Callable[[int], None] | None = None, *, contents: bool = True) -> Manifest:
    """Check that a bundle holds exactly what its manifest lists, byte for byte.

    Args:
        directory: Directory of the bundle.
        progress: Called with the number of bytes of each block hashed.
        contents: Whether to read and hash the files; otherwise only names and sizes are checked.

    Raises:
        BundleError: A file is missing, extra, or of another size or content. The message names all such files.
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
            f"The bundle {directory} is damaged: {'; '.join(faults)}. "
            "Copy the bundle again, or convert the checkpoint again."
        )
    return manifest


def open_bundle(directory: Path, progress: Callable[[int], None] | None = None) -> Bundle:
    """Verify a bundle and return it; open models through this function alone.

    Raises:
        BundleError: See `verify_bundle`.
    """
    return Bundle(directory, verify_bundle(directory, progress))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, the last file of a new bundle.

    Args:
        directory: A staged directory; see `staging.staged_directory`.
        manifest: Content of the manifest.

    Raises:
        BundleError: A value is out of its range, so that `read_manifest` would refuse the file.
    """
    path = directory / MANIFEST
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, sort_keys=True)
    data = f"{text}\n".encode("utf-8", "surrogatepass")
    try:
        _decode(data, path)
    except _InvalidError as error:
        raise BundleError(f"This model does not fit a manifest: {error}. Nothing was installed.") from error
    path.write_bytes(data)


def _file_fault(path: Path, entry: FileEntry, progress: Callable[[int], None] | None, *, contents: bool) -> str | None:
    if path.is_symlink() or not path.is_file():
        return "is not a regular file"
    if (size := path.stat().st_size) != entry.size_bytes:
        return f"has {size} bytes instead of {entry.size_bytes}"
    if contents and hash_file(path, progress) != entry.sha256:
        return "has other content than its sha256 says"
    return None


class _InvalidError(Exception):
    """A fault of a manifest, in words without a full stop."""


def _decode(data: bytes, path: Path) -> Manifest:
    """Return the manifest that these bytes hold.

    Args:
        data: UTF-8 JSON.
        path: Path of the file, for messages.

    Raises:
        BundleError: It is of another format, or names a path outside the bundle.
        _InvalidError: It has another fault.
    """
    try:
        # msgspec keeps the last of two equal keys without an error, so Python's parser reads the text first
        plain = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        _check_format(plain, path)
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise _InvalidError(_in_words(str(error))) from error
    except (ValueError, RecursionError) as error:
        raise _InvalidError(f"it is not valid JSON ({str(error)[:200]})") from error
    if unknown := next(_unknown(plain, msgspec.to_builtins(manifest)), None):
        raise _InvalidError(f"the field `{unknown}` is unknown")
    _check_files(manifest, path)
    return manifest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its keys and values in the file's order, refusing a key that appears twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:_MAX_SHOWN]!a} appears twice")
        found[key] = value
    return found


def _check_format(plain: object, path: Path) -> None:
    if not isinstance(plain, dict):
        raise _InvalidError(f"it must be an object, not {_shown(plain)}")
    if plain.get("format") != FORMAT:
        raise BundleError(
            f"{path} is of format {_shown(plain.get('format'))}; this version reads format {FORMAT}. "
            "Convert the checkpoint with this version of bimedix-edge."
        )


def _check_files(manifest: Manifest, path: Path) -> None:
    if sorted(manifest.files) != sorted(ROLES):
        listed = _shown(", ".join(sorted(manifest.files)))
        raise _InvalidError(f"`files` must list {' and '.join(ROLES)}, not {listed}")
    for role, entry in manifest.files.items():
        if not _FILE_NAME.fullmatch(entry.path):
            raise BundleError(
                f"{path} is unsafe: the {role}'s path {_shown(entry.path)} is not a plain file name and could point "
                "outside the bundle. Do not use this bundle."
            )


def _unknown(given: object, known: object, place: str = "") -> Iterator[str]:
    """Yield the places of keys in `given` that decoding dropped, since no field has their name."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key in known:
                yield from _unknown(value, known[key], f"{place}{key}.")
            else:
                yield f"{place}{key[:_MAX_SHOWN]}"


def _in_words(said: str) -> str:
    """Return a fault that msgspec states, such as "Expected `int` >= 1 - at `$.decoder.n_layer`", in our words."""
    problem, _, place = said.partition(" - at ")
    name = place.strip("`").removeprefix("$").removeprefix(".").replace("[...]", ".*")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        return f"the field `{f'{name}.' if name else ''}{missing[1]}` is missing"
    if problem.startswith("Invalid enum value "):
        return f"`{name}` cannot be {problem.removeprefix('Invalid enum value ')[:_MAX_SHOWN]}"
    if not problem.startswith("Expected "):
        return f"`{name}`: {problem}"
    wanted = problem.removeprefix("Expected ").replace(", got `float`", ", not a decimal number")
    for pattern, words in _PHRASES:
        wanted = re.sub(pattern, words, wanted)
    return f"`{name}` must be " + re.sub(r"`(\w+)`", lambda match: _KINDS.get(match[1], match[1]), wanted)


def _shown(value: object) -> str:
    """Return a value for a message: short, and without line ends or half surrogate pairs."""
    return ascii(value)[:_MAX_SHOWN]
