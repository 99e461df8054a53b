"""Nothing is parsed before it is hashed, and a bundle holds exactly what its manifest lists."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bimedix_edge.bundle import (
    DecoderSpec,
    FileEntry,
    Manifest,
    VisionSpec,
    hash_file,
    open_bundle,
    read_manifest,
    verify_bundle,
    write_manifest,
)
from bimedix_edge.errors import BundleError
from bimedix_edge.imaging.preprocess import Preprocessing
from bimedix_edge.prompt import PromptSpec


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    files = {}
    for role, name in (("decoder", "decoder.gguf"), ("vision", "vision.onnx")):
        (folder / name).write_bytes(role.encode() * 1000)
        files[role] = FileEntry(name, len(role) * 1000, hash_file(folder / name))
    manifest = Manifest(
        name="demo:f16",
        files=files,
        decoder=DecoderSpec("llama", "F16", 4, 256, 4, 2, 64, 1500, 131072),
        vision=VisionSpec(64, 256, "float32", 17),
        prompt=PromptSpec(),
        preprocessing=Preprocessing(image_size_px=112),
        source={"repository": "x"},
        licence="Apache-2.0",
        notice="Not for clinical use.",
        created_by="test",
    )
    write_manifest(folder, manifest)
    return folder


def _edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_whole_bundle_opens_and_its_manifest_survives_the_disk(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.path("decoder") == bundle / "decoder.gguf"
    assert opened.manifest.preprocessing == Preprocessing(image_size_px=112)
    assert opened.manifest.prompt == PromptSpec()


def test_progress_counts_every_byte(bundle: Path) -> None:
    counts: list[int] = []
    verify_bundle(bundle, counts.append)
    assert sum(counts) == 13000


@pytest.mark.parametrize("name", ["decoder.gguf", "vision.onnx"])
@pytest.mark.parametrize("offset", [0, 2500, 5999])
def test_a_changed_byte_is_found(bundle: Path, name: str, offset: int) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[offset] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} has other content"):
        open_bundle(bundle)


def test_everything_that_is_wrong_is_named_at_once(bundle: Path) -> None:
    (bundle / "decoder.gguf").unlink()
    (bundle / "vision.onnx").write_bytes(b"short")
    (bundle / "extra.bin").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    message = str(caught.value)
    assert "decoder.gguf is missing" in message
    assert "extra.bin is not in the manifest" in message
    assert "vision.onnx has 5 bytes instead of 6000" in message


def test_a_link_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes((bundle / "decoder.gguf").read_bytes())
    (bundle / "decoder.gguf").unlink()
    os.symlink(tmp_path / "elsewhere", bundle / "decoder.gguf")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "path", ["../decoder.gguf", "/etc/passwd", "a/b", "..", "", ".hidden", "a\\b", "C:x", "x\n", "d\u0660.gguf"]
)
def test_a_path_out_of_the_bundle_is_refused(bundle: Path, path: str) -> None:
    _edit(bundle, lambda data: data["files"]["decoder"].update(path=path))
    with pytest.raises(BundleError, match="plain file name"):
        open_bundle(bundle)


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", value=2), "format 1"),
        (_set("name", value=5), "manifest.name is '5'"),
        (_set("decoder", "n_layer", value="4"), "manifest.decoder.n_layer"),
        (_set("decoder", "n_layer", value=True), "manifest.decoder.n_layer"),
        (_set("preprocessing", "mean", value=[1, 2]), r"manifest.preprocessing.mean .* 3 values"),
        (_set("preprocessing", "aspect", value="stretch"), "manifest.preprocessing.aspect"),
        (_set("surprise", value=1), "unknown field surprise"),
        (_set("prompt", value=[]), "manifest.prompt"),
        (lambda data: data.pop("notice"), "lacks notice"),
        (lambda data: data["files"].pop("vision"), "decoder and vision"),
    ],
)
def test_a_malformed_manifest_is_refused_by_name(
    bundle: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"x"', "\ufeff{}"])
def test_what_is_no_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError):
        read_manifest(bundle)


def test_a_manifest_that_is_not_utf8_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b'{"format": 1, "name": "\xff"}')
    with pytest.raises(BundleError, match="JSON"):
        read_manifest(bundle)


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    (bundle / "manifest.json").write_text(" " * (2 << 20))
    with pytest.raises(BundleError, match="at most 1048576 bytes"):
        read_manifest(bundle)


def test_no_manifest_and_no_directory_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match="bimedix-edge convert"):
        read_manifest(bundle)
    with pytest.raises(BundleError, match="bundle directory"):
        read_manifest(tmp_path / "nowhere")
