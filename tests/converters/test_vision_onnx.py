"""The vision graph: its interface, its numbers against the numpy reference, and the bytes of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from make_checkpoint import Edits, Form, Shape, make_checkpoint

from bimedix_edge.converters.check import reference
from bimedix_edge.converters.check.parity import token_cosines
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.vision import onnx_file
from bimedix_edge.errors import CheckpointError

PARITY = 0.99999


def encoder(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(["image_embeds"], {"pixel_values": pixel_values})[0]


def pixels(shape: Shape, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((1, 3, shape.image_px, shape.image_px)).astype(np.float32)


def test_interface(bundle: Path) -> None:
    model = onnx.load(bundle / "vision.onnx")
    onnx.checker.check_model(model, full_check=True)
    ends = {}
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        ends[value.name] = [dimension.dim_value for dimension in tensor.shape.dim]
    assert ends == {"pixel_values": [1, 3, 28, 28], "image_embeds": [1, 16, 256]}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 17), ("com.microsoft", 1)]
    assert model.ir_version == 8
    assert model.producer_name == "bimedix-edge"
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["n_blocks"] == "3"
    assert properties["licence"] == "CC-BY-NC-SA-4.0"
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_no_block_after_the_feature_layer_and_no_post_norm(bundle: Path) -> None:
    names = {tensor.name for tensor in onnx.load(bundle / "vision.onnx").graph.initializer}
    assert any("layers.2." in name for name in names)
    assert not any("layers.3." in name or "post_layernorm" in name for name in names)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(select_layer=-1),
        Shape(select_layer=1),
        Shape(select_layer=0),
        Shape(vision_heads=8, image_px=21),
        Shape(image_px=30),  # a border that no patch covers
    ],
    ids=["last_but_one", "last", "first", "embeddings", "many_heads", "border"],
)
def test_every_token_as_the_reference(shape: Shape, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "source", shape=shape)
    convert(directory, tmp_path / "out", ConvertOptions(file_type="F16"))
    encode = encoder(tmp_path / "out/vision.onnx")
    for seed in range(2):
        values = pixels(shape, seed)
        assert token_cosines(Checkpoint(directory), encode, values).min() >= PARITY
        difference = np.abs(encode(values) - reference.image_embeds(Checkpoint(directory), values))
        assert difference.max() < 1e-4


def test_exact_gelu_tower(tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["vision_config"]["hidden_act"] = "gelu"

    directory = make_checkpoint(tmp_path / "source", form=Form(layout="transformers_new"), edits=Edits(config=edit))
    convert(directory, tmp_path / "out", ConvertOptions(file_type="F16"))
    cosines = token_cosines(Checkpoint(directory), encoder(tmp_path / "out/vision.onnx"), pixels(Shape()))
    assert cosines.min() >= PARITY


def test_tokens_are_in_the_order_of_the_patches(bundle: Path) -> None:
    encode, base = encoder(bundle / "vision.onnx"), np.zeros((1, 3, 28, 28), np.float32)
    for patch in (0, 5, 15):
        row, column = divmod(patch, 4)
        changed = base.copy()
        changed[..., row * 7 : row * 7 + 7, column * 7 : column * 7 + 7] = 3
        moved = np.linalg.norm(encode(changed) - encode(base), axis=-1)[0]
        assert moved.argmax() == patch


def test_a_streamed_file_is_what_onnx_would_write(bundle: Path) -> None:
    data = (bundle / "vision.onnx").read_bytes()
    again = onnx.load_from_string(data).SerializeToString(deterministic=True)
    assert onnx.load_from_string(again) == onnx.load_from_string(data)
    assert len(again) == len(data)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.mm_projector.2.bias"][3] = np.nan

    make_checkpoint(tmp_path / "source", edits=Edits(tensors=spoil))
    with pytest.raises(CheckpointError, match=r"projector\.2\.bias of the vision tower has NaN or infinity"):
        convert(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_of_two_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_MODEL_BYTES", 100_000)
    make_checkpoint(tmp_path / "source")
    with pytest.raises(CheckpointError, match="one ONNX file holds less than 2 GiB"):
        convert(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(("value", "expected"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2")])
def test_varint(value: int, expected: bytes) -> None:
    assert onnx_file.varint(value) == expected
