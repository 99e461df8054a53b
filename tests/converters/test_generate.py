"""Generated checkpoints: the same values in every form, accepted like published ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.synthetic.checkpoint import LAYOUTS, Storage, generate, weight_blocks
from bimedix_edge.converters.synthetic.config import SHAPES, Shape, tensor_shapes
from bimedix_edge.decoder.gguf_header import read_header
from bimedix_edge.errors import UsageError

TINY = Shape(n_layer=2, vision_layers=2)


def test_layouts_dtypes_and_shards_hold_the_same_values(tmp_path: Path) -> None:
    hashes = set()
    for index, (layout, dtype, n_shards) in enumerate(
        (layout, dtype, n) for layout in LAYOUTS for dtype, n in (("bf16", 1), ("f16", 3), ("f32", 2))
    ):
        source = tmp_path / f"source{index}"
        generate(source, TINY, Storage(layout, dtype, n_shards), seed=7)
        assert Checkpoint(source).layout == LAYOUTS[layout]
        assert len(list(source.glob("*.safetensors"))) == n_shards
        manifest = convert(source, tmp_path / f"out{index}", ConvertOptions(file_type="Q8_0", name="same"))
        hashes.add(tuple(entry.sha256 for entry in manifest.files.values()))
    assert len(hashes) == 1


def test_its_own_library_reads_it(tmp_path: Path) -> None:
    generate(tmp_path / "source", TINY, seed=3)
    with safe_open(tmp_path / "source/model.safetensors", "numpy") as file:
        assert set(file.keys()) >= {
            "lm_head.weight",
            "model.mm_projector.0.weight",
            "model.layers.1.mlp.up_proj.weight",
        }
        assert file.get_slice("lm_head.weight").get_shape() == [288, 256]


def test_another_seed_gives_other_values(tmp_path: Path) -> None:
    name, size = "model.layers.0.mlp.up_proj.weight", (512, 256)
    first, again, other = (next(weight_blocks(name, size, seed))() for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert abs(first.std() - 1 / 16) < 1e-3


def test_shapes_of_the_published_models() -> None:
    sizes = tensor_shapes(SHAPES["8b"])
    n_bytes = 2 * sum(int(np.prod(size, dtype=np.int64)) for size in sizes.values())
    assert len(sizes) == 686  # as in the published 8B
    assert 16.7e9 < n_bytes < 16.8e9
    assert tensor_shapes(SHAPES["70b-slice"])["model.layers.1.mlp.down_proj.weight"] == (8192, 28672)


def test_the_real_vocabulary(llama3_vocab: Path, tmp_path: Path) -> None:
    shape = Shape(n_embd=32, n_ff=32, n_layer=1, n_head=2, n_head_kv=1, n_vocab=128257, vision_layers=2)
    generate(tmp_path / "source", shape, Storage(vocabulary=llama3_vocab))
    convert(tmp_path / "source", tmp_path / "out", ConvertOptions(file_type="F16"))
    header = read_header((tmp_path / "out/decoder.gguf").read_bytes())
    assert header.keys["tokenizer.ggml.tokens"] == shape.n_vocab


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bimedix_edge.converters.synthetic.checkpoint", "--shape", "demo", "--shards", "2"]
    subprocess.run([*command, str(tmp_path / "out")], check=True, timeout=120)
    assert Checkpoint(tmp_path / "out").config.decoder.n_layer == 4
    second = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert second.returncode == UsageError.exit_code
    assert " exists already. Remove it or choose another name." in " ".join(second.stderr.split())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_left_of_an_interrupted_one(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimedix_edge.converters.synthetic.checkpoint.in_order", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(tmp_path / "out", TINY, Storage(layout))
    assert list(tmp_path.iterdir()) == []
