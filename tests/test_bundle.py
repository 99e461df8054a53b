"""Nothing is parsed before it is hashed, and a bundle holds exactly what its manifest lists."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bimedix_edge.bundle import (
    DecoderSpec,
    FileEntry,
    Manifest,
    Quality,
    VisionFidelity,
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


def _replace(bundle: Path, old: str, new: str) -> None:
    """Replace a part of the manifest's text, which must be there."""
    path = bundle / "manifest.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


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
        (_set("format", value=2), "reads format 1"),
        (_set("format", value=True), "`format` must be a whole number, not true or false"),
        (_set("name", value=5), "`name` must be text, not a whole number"),
        (_set("name", value="x" * 300), "`name` must be text of at most 256 characters"),
        (_set("decoder", "n_layer", value="4"), r"`decoder\.n_layer` must be a whole number, not text"),
        (_set("decoder", "n_layer", value=True), r"`decoder\.n_layer` must be a whole number, not true or false"),
        (_set("decoder", "n_layer", value=4.0), r"`decoder\.n_layer` must be a whole number, not a decimal number"),
        (_set("decoder", "n_layer", value=None), r"`decoder\.n_layer` must be a whole number, not null"),
        (_set("preprocessing", "mean", value=[0.5, 0.5]), r"`preprocessing\.mean` must be a list of length 3"),
        (
            _set("preprocessing", "pad_rgb", value=[1, 2, "3"]),
            r"`preprocessing\.pad_rgb\[2\]` must be a whole number, not text",
        ),
        (_set("preprocessing", "aspect", value="stretch"), r"`preprocessing\.aspect` cannot be 'stretch'"),
        (_set("surprise", value=1), "the field `surprise` is unknown"),
        (_set("decoder", "surprise", value=[]), r"the field `decoder\.surprise` is unknown"),
        (_set("files", "vision", "url", value="x"), r"the field `files\.vision\.url` is unknown"),
        (_set("prompt", value=[]), "`prompt` must be an object, not a list"),
        (_set("source", "repository", value=1), r"`source\.\*` must be text"),
        (lambda data: data.pop("notice"), "the field `notice` is missing"),
        (lambda data: data["decoder"].pop("n_vocab"), r"the field `decoder\.n_vocab` is missing"),
        (lambda data: data["files"].pop("vision"), "decoder and vision"),
    ],
)
def test_a_malformed_manifest_is_refused_by_name(
    bundle: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


# each is out of its range by one step, or so far that memory or arithmetic would give way
OUT_OF_RANGE: list[tuple[tuple[str, ...], Any]] = [
    (("decoder", "n_layer"), 0),
    (("decoder", "n_layer"), 1025),
    (("decoder", "n_embd"), 1 << 18),
    (("decoder", "n_head"), -32),
    (("decoder", "n_head_kv"), 1_000_000),
    (("decoder", "head_dim"), 1 << 40),
    (("decoder", "n_vocab"), 10**9),
    (("decoder", "n_ctx_train"), 0),
    (("decoder", "n_ctx_train"), 1 << 31),
    (("vision", "n_tokens"), 0),
    (("vision", "n_tokens"), 10**9),
    (("vision", "n_embd"), 1 << 63),
    (("vision", "opset"), 10**4),
    (("prompt", "bos"), 0),
    (("prompt", "bos"), 3),
    (("prompt", "bos"), 1_000_000_000),
    (("prompt", "bos"), -1),
    (("preprocessing", "image_size_px"), 0),
    (("preprocessing", "image_size_px"), 1_000_000),
    (("preprocessing", "pad_rgb"), [0, 0, 256]),
    (("preprocessing", "mean"), [0.5, 0.5, 1e300]),
    (("preprocessing", "std"), [0.5, 0.5, 0.0]),
    (("quality", "vision", "n_images"), -1),
    (("quality", "vision", "cosine_min"), 2.0),
    (("quality", "types", "Q8_0"), {"relative_rms": -1e-9, "cosine": 1.0}),
    (("files", "decoder", "size_bytes"), 0),
    (("files", "decoder", "size_bytes"), -1),
    (("files", "decoder", "size_bytes"), 1 << 60),
    (("files", "vision", "sha256"), "0" * 63),
    (("files", "vision", "sha256"), "G" * 64),
    (("files", "vision", "sha256"), "0" * 64 + "\n"),
    (("prompt", "system"), "x" * 70_000),
]


@pytest.mark.parametrize(("place", "value"), OUT_OF_RANGE, ids=lambda item: repr(item)[:50])
def test_a_value_out_of_its_range_is_refused_by_name(bundle: Path, place: tuple[str, ...], value: Any) -> None:
    _edit(bundle, _set(*place, value=value))
    name = place[0] if place[0] in ("files", "quality") else r"\.".join(place)
    with pytest.raises(BundleError, match=f"is damaged: `{name}"):
        read_manifest(bundle)


# where a number stands in the manifest, and where a text does
NUMBERS = {"bos": '"bos": 2', "cosine": '"cosine_min": 0.0', "size": '"size_bytes": 7000', "std": "0.26862954"}
BAD_NUMBERS = {
    "nan": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "1e400": "1e400",
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "leading zero": "007",
}


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("place", NUMBERS)
def test_a_number_that_is_none_is_refused(bundle: Path, place: str, bad: str) -> None:
    old = NUMBERS[place]
    _replace(bundle, old, old.rpartition(" ")[0] + " " + BAD_NUMBERS[bad])
    with pytest.raises(BundleError, match="is damaged"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"name": "demo:f16"', '"name": "a", "name": "demo:f16"', "the key 'name' appears twice"),
        ('"bos": 2', '"bos": 2, "bos": 2', "the key 'bos' appears twice"),
        ('"bos": 2', '"bos": 2, "b\\u006fs": 1', "the key 'bos' appears twice"),
        ('"repository": "x"', '"repository": "x", "repository": "x"', "the key 'repository' appears twice"),
        ('"demo:f16"', '"\\ud800"', "is damaged"),
        ('"demo:f16"', '"\\udc00 tail"', "is damaged"),
        ('"repository"', '"\\udfff"', "is damaged"),
        ('"bos": 2', '"bos": 2, "\\ud800": ' + "[" * 500 + "]" * 500, "is damaged"),
        ('"bos": 2', '"bos": ' + "[" * 100_000, "is damaged"),
        ('"name"', '"name":: "x", "name"', "not valid JSON"),
    ],
    ids=lambda item: item[:40],
)
def test_damaged_json_is_refused(bundle: Path, old: str, new: str, message: str) -> None:
    _replace(bundle, old, new)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


def test_hostile_manifests_cost_neither_memory_nor_time(bundle: Path) -> None:
    whole = (bundle / "manifest.json").read_text(encoding="utf-8")
    start = time.monotonic()
    tracemalloc.start()
    try:
        for place, value in OUT_OF_RANGE:
            (bundle / "manifest.json").write_text(whole, encoding="utf-8")
            _edit(bundle, _set(*place, value=value))
            with pytest.raises(BundleError):
                open_bundle(bundle)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"bos": 2', '"bos": 1000000000'),
        ('"bos": 2', '"bos": 2, "bos": 1'),
        ('"bos": 2', '"bos": NaN'),
        ('"bos": 2', '"bos": ' + "9" * 400),
        ('"demo:f16"', '"\\ud800"'),
    ],
)
def test_models_show_ends_with_code_4(bundle: Path, old: str, new: str) -> None:
    _replace(bundle, old, new)
    command = [sys.executable, "-m", "bimedix_edge.cli.main", "models", "show", str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 4, result.stderr
    assert "is damaged" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_manifest_that_could_not_be_read_is_not_written(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    before = (bundle / "manifest.json").read_bytes()
    for wrong in (
        replace(manifest, name="half a pair: \ud800"),
        replace(manifest, quality=Quality(vision=VisionFidelity(cosine_min=math.nan))),
        replace(manifest, prompt=PromptSpec(bos=1_000_000_000)),
    ):
        with pytest.raises(BundleError, match=r"does not fit a manifest: .* Nothing was installed"):
            write_manifest(bundle, wrong)
    assert (bundle / "manifest.json").read_bytes() == before
    write_manifest(bundle, manifest)
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"x"', "\ufeff{}"])
def test_what_is_no_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError):
        read_manifest(bundle)


def test_a_manifest_that_is_not_utf8_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b'{"format": 1, "name": "\xff"}')
    with pytest.raises(BundleError, match="not valid JSON"):
        read_manifest(bundle)


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    (bundle / "manifest.json").write_text(" " * (2 << 20))
    with pytest.raises(BundleError, match=r"too large .* at most 1048576 bytes"):
        read_manifest(bundle)


def test_no_manifest_and_no_directory_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match="bimedix-edge convert"):
        read_manifest(bundle)
    with pytest.raises(BundleError, match="bundle directory"):
        read_manifest(tmp_path / "nowhere")
