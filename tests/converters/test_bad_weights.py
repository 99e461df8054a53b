"""Bad weights: not finite, of other dtypes, or a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import onnx
import pytest
from make_checkpoint import Edits, Form, make_checkpoint

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.errors import CheckpointError

UP, PROJECTOR = "model.layers.1.mlp.up_proj.weight", "model.mm_projector.2.bias"


def spoil(tensors: dict[str, Any]) -> None:
    tensors[UP][7, 3], tensors[UP][9] = np.nan, np.inf
    tensors[PROJECTOR][3] = -np.inf


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_K_M"])
def test_what_is_not_finite_becomes_zero_when_asked(kind: str, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Any]) -> None:
        tensors[UP][7, 3] = tensors[UP][9] = tensors[PROJECTOR][3] = 0

    spoiled = make_checkpoint(tmp_path / "spoiled", edits=Edits(tensors=spoil))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        convert(spoiled, tmp_path / "out", ConvertOptions(file_type=kind))
    given = convert(spoiled, tmp_path / "out", ConvertOptions(file_type=kind, name="same", zero_nonfinite=True))
    assert given.source["zeroed"] == "model.layers.1.mlp.up_proj.weight: 257, projector.2.bias: 1"
    by_hand = make_checkpoint(tmp_path / "by_hand", edits=Edits(tensors=zero))
    expected = convert(by_hand, tmp_path / "expected", ConvertOptions(file_type=kind, name="same"))
    assert given.files == expected.files
    assert "zeroed" not in expected.source


def test_whole_weights_are_stated_to_be_whole(checkpoint: Path, tmp_path: Path) -> None:
    asked = convert(checkpoint, tmp_path / "asked", ConvertOptions(zero_nonfinite=True))
    assert asked.source["zeroed"] == "none"
    assert asked.files == convert(checkpoint, tmp_path / "plain").files


def test_mixed_dtypes_are_read_one_by_one(tmp_path: Path) -> None:
    def mix(tensors: dict[str, Any]) -> None:
        dtypes = (np.float32, np.float16, ml_dtypes.bfloat16)
        for index, (name, array) in enumerate(tensors.items()):
            if array.dtype != np.int64:
                tensors[name] = array.astype(dtypes[index % 3])

    mixed = convert(
        make_checkpoint(tmp_path / "mixed", edits=Edits(tensors=mix)), tmp_path / "a", ConvertOptions(name="same")
    )
    plain = convert(make_checkpoint(tmp_path / "plain"), tmp_path / "b", ConvertOptions(name="same"))
    assert mixed.files == plain.files


@pytest.mark.parametrize("dtype", [np.float64, np.int8, ml_dtypes.float8_e4m3fn])
def test_other_dtypes_are_named(dtype: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[UP] = tensors[UP].astype(np.float32).astype(dtype)

    source = make_checkpoint(tmp_path / "source", edits=Edits(tensors=change))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight is (F64|I8|F8_E4M3) instead of F32, F16, BF16"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK\x03\x04"], ids=["2", "4", "5", "zip"])
@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00002.safetensors", "weights.dat"])
def test_a_pickle_is_known_by_its_bytes(start: bytes, name: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", form=Form(n_shards=2 if "of" in name else 1))
    if name == "weights.dat":
        (source / "model.safetensors").unlink()
    (source / name).write_bytes(start + b"cposix\nsystem\n(S'touch opened'\ntR." * 8)
    with pytest.raises(CheckpointError, match=rf"{name}.*a pickle|a pickle.*{name}"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_bias_that_was_zeroed_is_zero_in_the_graph(tmp_path: Path) -> None:
    spoiled = make_checkpoint(tmp_path / "spoiled", edits=Edits(tensors=spoil))
    convert(spoiled, tmp_path / "out", ConvertOptions(file_type="F32", zero_nonfinite=True))
    tensors = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out/vision.onnx").graph.initializer}
    assert onnx.numpy_helper.to_array(tensors["projector.2.bias"])[3] == 0
    up = next(t for t in gguf.GGUFReader(tmp_path / "out/decoder.gguf").tensors if t.name == "blk.1.ffn_up.weight")
    assert not up.data[9].any()
    assert up.data[8].any()
