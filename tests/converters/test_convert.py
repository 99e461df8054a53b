"""Conversion as a whole: the bundle, the refusals, and what they leave on the disk."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from make_checkpoint import Form, Shape, edit_json, make_checkpoint

from bimedix_edge.bundle import open_bundle, verify_bundle
from bimedix_edge.converters import convert as convert_module
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.job.job import prepare
from bimedix_edge.converters.source.card import LICENCE, NOTICE, Card, read_card
from bimedix_edge.converters.source.naming import LAYOUTS
from bimedix_edge.errors import CheckpointError, HardwareError, UsageError
from bimedix_edge.prompt import SYSTEM

# a conversion in a separate process, slowed down for the tests
CHILD = """
import sys, time
from pathlib import Path
from bimedix_edge.converters.convert import ConvertOptions, convert
def slowly(stage, done, total):
    print(stage, done, flush=True)
    time.sleep({delay})
convert(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(file_type="F16"), slowly)
"""


def child(source: Path, target: Path, *, delay: float = 0.0, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD.format(delay=delay), str(source), str(target)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_bundle_opens(file_type: str, checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(file_type=file_type))
    bundle = open_bundle(tmp_path / "out")
    assert bundle.manifest == manifest
    assert manifest.decoder.file_type == file_type
    assert visible(tmp_path / "out") == ["decoder.gguf", "manifest.json", "vision.onnx"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_manifest(checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="q4_0"))
    assert manifest.name == "tiny"
    decoder = manifest.decoder
    assert (decoder.architecture, decoder.file_type, decoder.n_ctx_train) == ("llama", "Q4_0", 131072)
    assert (decoder.n_layer, decoder.n_embd, decoder.n_head, decoder.n_head_kv) == (3, 256, 4, 2)
    assert (decoder.head_dim, decoder.n_vocab) == (64, 288)
    vision = manifest.vision
    assert (vision.n_tokens, vision.n_embd, vision.weights, vision.opset) == (16, 256, "float32", 17)
    assert (manifest.prompt.bos, manifest.prompt.system) == (2, SYSTEM)
    assert (manifest.licence, manifest.notice) == (LICENCE, NOTICE)
    assert manifest.preprocessing.aspect == "pad"


def test_source_names_what_was_read_and_no_path(checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16"))
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    configs = ("config.json", "vision_tower/config.json", "tokenizer.json", "tokenizer_config.json")
    assert {key[7:] for key in manifest.source if key.startswith("sha256:")} == {*configs, *shards}
    for name in (*configs, *shards):
        expected = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        assert manifest.source[f"sha256:{name}"] == expected
    assert manifest.source["layout"] == "original"
    assert str(checkpoint.parent) not in (tmp_path / "out/manifest.json").read_text()


def test_layouts_dtypes_shards_and_merges_give_the_same_bytes(tmp_path: Path) -> None:
    variants = [
        (layout, dtype, n, pairs) for layout in LAYOUTS for dtype, n, pairs in (("bf16", 1, False), ("f32", 3, True))
    ]
    hashes = set()
    for index, (layout, dtype, n_shards, pairs) in enumerate([*variants, ("original", "f16", 2, False)]):
        source = tmp_path / f"source{index}"
        make_checkpoint(source, form=Form(layout=layout, dtype=dtype, n_shards=n_shards, pairs=pairs))
        manifest = convert(source, tmp_path / f"out{index}", ConvertOptions(file_type="Q4_K_M", name="same"))
        hashes.add(tuple(entry.sha256 for entry in manifest.files.values()))
    assert len(hashes) == 1


def test_the_same_bytes_every_time(checkpoint: Path, tmp_path: Path) -> None:
    first = convert(checkpoint, tmp_path / "first")
    time.sleep(1.1)
    assert convert(checkpoint, tmp_path / "second") == first
    assert (tmp_path / "first/manifest.json").read_bytes() == (tmp_path / "second/manifest.json").read_bytes()


def test_card_beside_the_checkpoint(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "source", shape=Shape(n_layer=1))
    (tmp_path / "source/card.toml").write_text(
        'name = "demo"\nrepository = "org/demo"\nrevision = "abc"\nlicence = "Apache-2.0"\n'
        'notice = "It knows no medicine."\n'
        'languages = ["en"]\ndescription = "x"\n[prompt]\nbos = 1\nsystem = "Hi."\n[preprocessing]\naspect = "crop"\n'
        "[scores.anything]\nf1 = 0.5\n"
    )
    manifest = convert(tmp_path / "source", tmp_path / "out")
    assert (manifest.name, manifest.licence, manifest.notice) == ("demo", "Apache-2.0", "It knows no medicine.")
    assert (manifest.prompt.bos, manifest.prompt.system, manifest.preprocessing.aspect) == (1, "Hi.", "crop")
    assert (manifest.source["repository"], manifest.source["revision"]) == ("org/demo", "abc")
    said = convert(
        tmp_path / "source",
        tmp_path / "other",
        ConvertOptions(name="mine", bos=2, aspect="pad", card=Card(licence="MIT")),
    )
    assert (said.name, said.prompt.bos, said.preprocessing.aspect, said.licence) == ("mine", 2, "pad", "MIT")
    assert (
        convert(tmp_path / "source", tmp_path / "third", ConvertOptions(card=tmp_path / "source/card.toml")) == manifest
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence = 7", "licence in card.toml is 7, .* It supports a string"),
        ("license = 'MIT'", r"has unknown fields: license\. Remove"),
        ("[prompt]\nbos = 3", "a whole number from 1 to 2"),
        ("[prompt]\neos = 3", r"has unknown fields: prompt\.eos"),
        ("prompt = 1", "card.toml: prompt is not a JSON object"),
        ("[preprocessing]\naspect = 'tile'", 'It supports "pad" or "crop"'),
        ("[scores]\nf1 = 0.5", "card.toml: scores: f1 is not a JSON object"),
        ("languages = 'en'", 'languages in card.toml is "en", .* It supports an array'),
        ("=", "is not valid TOML"),
        ("a = " + "[" * 5000, "is not valid TOML"),
    ],
)
def test_bad_card(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_card(tmp_path / "card.toml")
    with pytest.raises(CheckpointError, match=r"The card .* cannot be read"):
        read_card(tmp_path / "none.toml")


def test_progress_counts_each_stage_to_its_end(checkpoint: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    convert(checkpoint, tmp_path / "out", progress=lambda *event: seen.setdefault(event[0], []).append(event[1:]))
    assert list(seen)[:3] == ["decoder", "vision", "source"]
    assert set(list(seen)[3:]) == {"quality", "verify"}
    for events in seen.values():
        done = [event[0] for event in events]
        assert done == sorted(done)
        assert len({event[1] for event in events}) == 1
        assert done[-1] <= events[-1][1]


def test_existing_target(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16"))
    with pytest.raises(UsageError, match="exists"):
        convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q8_0"))
    assert verify_bundle(tmp_path / "out").decoder.file_type == "F16"
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q8_0", replace=True))
    assert verify_bundle(tmp_path / "out").decoder.file_type == "Q8_0"


def test_a_bad_checkpoint_leaves_the_old_bundle(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16"))
    make_checkpoint(tmp_path / "source")
    edit_json(tmp_path / "source/config.json", lambda c: c.update(model_type="phi3_v"))
    with pytest.raises(CheckpointError):
        convert(tmp_path / "source", tmp_path / "out", ConvertOptions(replace=True))
    assert verify_bundle(tmp_path / "out").decoder.file_type == "F16"


def test_a_bad_checkpoint_creates_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "source")
    edit_json(tmp_path / "source/config.json", lambda c: c.update(hidden_size=512))
    with pytest.raises(CheckpointError):
        convert(tmp_path / "source", tmp_path / "deep/er/out")
    assert visible(tmp_path) == ["source"]


def test_too_little_room(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = convert_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(HardwareError, match=r"too little room for .*out: 1 MB free, 3 MB needed"):
        convert(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_of_the_size_is_an_upper_bound(tmp_path: Path) -> None:
    for index, shape in enumerate((Shape(n_layer=1), Shape(n_layer=8, vision_layers=2, image_px=70))):
        make_checkpoint(tmp_path / f"source{index}", shape=shape)
        for kind in ("F32", "Q4_K_M"):
            job = prepare(tmp_path / f"source{index}", ConvertOptions(file_type=kind))
            convert(tmp_path / f"source{index}", tmp_path / f"out{index}{kind}", ConvertOptions(file_type=kind))
            size = sum(path.stat().st_size for path in (tmp_path / f"out{index}{kind}").iterdir())
            assert size <= job.size_bytes < 2 * size + (4 << 20)


@pytest.mark.parametrize("stage", ["decoder", "vision", "source", "verify"])
def test_interrupt_keeps_what_is_whole(stage: str, checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(now: str, done: int, _total: int) -> None:
        if now == stage and done:
            raise KeyboardInterrupt

    expected = convert(checkpoint, tmp_path / "expected", ConvertOptions(name="tiny"))
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "out", progress=interrupt)
    assert visible(tmp_path) == ["expected"]
    # after the first bytes of the decoder, no part is whole yet
    assert (tmp_path / ".out.part").exists() == (stage != "decoder")
    assert convert(checkpoint, tmp_path / "out") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_kill_at_many_moments_then_success(checkpoint: Path, tmp_path: Path) -> None:
    expected = convert(checkpoint, tmp_path / "expected", ConvertOptions(file_type="F16", name="tiny"))
    rng = random.Random(1)
    for attempt in range(6):
        process = child(checkpoint, tmp_path / "out", delay=0.005)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 60)):  # progress lines: 0 ends within the sources, 60 within the vision graph
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert visible(tmp_path) == ["expected"], f"attempt {attempt}"
        assert len([path for path in tmp_path.iterdir() if path.suffix == ".part"]) <= 1
    assert convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16")).files == expected.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
@pytest.mark.parametrize("limit", [0, 1, 4096, 20_000, 100_000, 1_000_000, 2_000_000])
def test_no_room_for_a_file(limit: int, checkpoint: Path, tmp_path: Path) -> None:
    def shrink() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG, as it does with ENOSPC
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = child(checkpoint, tmp_path / "out", preexec_fn=shrink)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "HardwareError: There is no room to write" in errors
    assert visible(tmp_path) == []
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16"))
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_place(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        convert(checkpoint, tmp_path / "closed/out")


def test_target_below_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        convert(checkpoint, tmp_path / "file/out")


def test_neither_torch_nor_transformers_nor_tokenizers(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        CHILD.format(delay=0)
        + "print([m for m in ('torch', 'transformers', 'tokenizers', 'safetensors') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "out")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_a_source_that_vanishes_is_not_called_a_full_disk(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "source")

    def remove(_stage: str, _done: int, _total: int) -> None:
        # the conversion fails to read it, or finds it changed afterwards
        (tmp_path / "source/tokenizer.json").unlink(missing_ok=True)

    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read \(No such file"):
        convert(tmp_path / "source", tmp_path / "out", progress=remove)
    assert visible(tmp_path) == ["source"]
