"""8-bit vision graphs: their accuracy, their sizes, and the gate that accepts them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from make_checkpoint import Edits, Shape, make_checkpoint
from test_vision_onnx import encoder, pixels

from bimedix_edge.bundle import open_bundle
from bimedix_edge.converters.check.parity import token_cosines
from bimedix_edge.converters.check.vision_choice import GATE
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.vision.weights import column_scales, round_to_int8
from bimedix_edge.errors import CheckpointError
from bimedix_edge.vision import providers

SHAPE = Shape(vision_embd=128, vision_ff=256, n_layer=1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose tower is wide enough for rounding errors to average out."""
    return make_checkpoint(tmp_path_factory.mktemp("wide") / "source", shape=SHAPE)


def outliers(tensors: dict[str, Any]) -> None:
    """Make the activations of two channels twenty times as large as the others', as in trained towers."""
    for name, values in tensors.items():
        if "layer_norm" in name and name.endswith("weight"):
            values[:2] = 20


@pytest.mark.parametrize(
    ("kind", "lowest"), [("int8", 0.999), ("int8_weights", 0.999), ("float16", 0.9999), ("float32", 0.999999)]
)
def test_tokens_stay_close(kind: Any, lowest: float, wide: Path, tmp_path: Path) -> None:
    manifest = convert(wide, tmp_path / "out", ConvertOptions(vision=kind))
    assert manifest.vision.weights == kind
    assert manifest.quality.vision.cosine_min >= lowest
    for seed in range(2):
        found = token_cosines(Checkpoint(wide), encoder(tmp_path / "out/vision.onnx"), pixels(SHAPE, seed))
        assert found.min() >= lowest
    assert open_bundle(tmp_path / "out").manifest.quality == manifest.quality


@pytest.mark.parametrize("kind", ["int8", "int8_weights"])
def test_the_file_is_checked_and_small(kind: Any, wide: Path, tmp_path: Path) -> None:
    small = convert(wide, tmp_path / "small", ConvertOptions(vision=kind)).files["vision"].size_bytes
    large = convert(wide, tmp_path / "large", ConvertOptions(vision="float32")).files["vision"].size_bytes
    assert small < 0.4 * large
    model = onnx.load(tmp_path / "small/vision.onnx")
    onnx.checker.check_model(model, full_check=True)
    functions = {"Attention", "Int8Linear", "Int8LinearAdd", "Int8LinearSilu"}
    assert {function.name for function in model.functions} == (functions if kind == "int8" else set())
    used = {node.op_type for node in model.graph.node if node.domain}
    assert used == (functions if kind == "int8" else {"MultiHeadAttention"})
    assert {item.value for item in model.metadata_props if item.key == "weights"} == {kind}
    matrices = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    # query, key, value, output and two of the MLP in each block, two of the projector
    assert len(matrices) == 3 * 6 + 2
    # each definition contains a rounding; ONNX Runtime merges those of the same activations
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(tmp_path / "small/vision.onnx"), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx").graph.node
    rounding = sum(node.op_type == "DynamicQuantizeLinear" for node in optimized)
    assert rounding == (3 * 4 + 2 if kind == "int8" else 0)
    assert not [node for node in optimized if node.domain == "bimedix_edge"]


def test_float16_is_half_as_large_and_float32_at_its_ends_and_between_blocks(wide: Path, tmp_path: Path) -> None:
    half = convert(wide, tmp_path / "half", ConvertOptions(vision="float16")).files["vision"].size_bytes
    assert half < 0.6 * convert(wide, tmp_path / "whole").files["vision"].size_bytes
    model = onnx.load(tmp_path / "half/vision.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    half_type = onnx.TensorProto.FLOAT16
    assert {kinds[node.input[1]] for node in model.graph.node if node.op_type == "MatMul"} == {half_type}
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert {kinds[node.input[1]] for node in norms} == {onnx.TensorProto.FLOAT}
    assert {made_by[node.input[0]].op_type for node in norms} == {"Concat", "Add", "LayerNormalization"}
    sums = [node for node in model.graph.node if node.op_type == "Add" and node.name.endswith((".attended", ".out"))]
    casts = [made_by[node.input[1]] for node in sums]
    assert [(node.op_type, node.attribute[0].i) for node in casts] == [("Cast", onnx.TensorProto.FLOAT)] * (2 * 3)


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, Any]) -> None:
        tensors["model.mm_projector.2.weight"][3, 3] = 1e6

    source = make_checkpoint(tmp_path / "source", edits=Edits(tensors=enlarge))
    with pytest.raises(
        CheckpointError, match=r"projector\.2\.weight of the vision tower has NaN or infinity in float16"
    ):
        convert(source, tmp_path / "out", ConvertOptions(vision="float16"))


def test_auto_takes_int8_where_it_passes(wide: Path, tmp_path: Path) -> None:
    manifest = convert(wide, tmp_path / "auto", ConvertOptions(vision="auto", name="same"))
    assert manifest.vision.weights == "int8"
    assert manifest.quality.vision.choice == "int8 passes 0.999"
    assert manifest.files == convert(wide, tmp_path / "int8", ConvertOptions(vision="int8", name="same")).files
    assert not [path for path in (tmp_path / "auto").iterdir() if "trial" in path.name]


def test_outliers_spoil_int8_and_not_8_bit_weights(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", shape=SHAPE, edits=Edits(tensors=outliers))
    manifest = convert(source, tmp_path / "out", ConvertOptions(vision="auto"))
    assert manifest.vision.weights == "int8_weights"
    choice = manifest.quality.vision.choice
    assert choice.startswith("int8 has a token at 0.")
    assert choice.endswith("int8_weights passes 0.999")
    assert manifest.quality.vision.cosine_min >= GATE
    with pytest.raises(CheckpointError, match=r"an image token has the cosine 0\.\d+, below 0\.999"):
        convert(source, tmp_path / "strict", ConvertOptions(vision="int8", strict=True))


def test_auto_ends_at_float32(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimedix_edge.converters.check.vision_choice.GATE", 0.9999999)
    manifest = convert(wide, tmp_path / "out", ConvertOptions(vision="auto"))
    assert manifest.vision.weights == "float32"
    choice = manifest.quality.vision.choice
    assert "int8_weights has a token at" in choice
    assert choice.endswith("so it is float32")


def test_the_slower_way_gives_the_same_tokens(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = convert(wide, tmp_path / "fast", ConvertOptions(vision="int8", name="same"))
    monkeypatch.setattr("bimedix_edge.vision.sessions.products_overflow", lambda: True)
    slow = convert(wide, tmp_path / "slow", ConvertOptions(vision="int8", name="same"))
    assert slow == fast


def test_the_probe_is_what_it_says() -> None:
    model = onnx.load_from_string(base64.b64decode(providers._PROBE))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    assert providers.products_overflow() in (True, False)


def test_rounding() -> None:
    weight = np.array([[1.0, 0.0, -3.0], [-0.5, 0.0, 1.0]], np.float32)
    assert column_scales(weight).tolist() == pytest.approx([1 / 127, 1, 3 / 127])
    assert round_to_int8(weight, column_scales(weight)).tolist() == [[127, 0, -127], [-64, 0, 42]]


@pytest.mark.parametrize("kind", ["int8", "int8_weights", "auto"])
def test_weights_that_are_not_finite(kind: Any, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.mm_projector.2.weight"][3, 3] = np.nan

    make_checkpoint(tmp_path / "source", edits=Edits(tensors=spoil))
    with pytest.raises(CheckpointError, match=r"projector\.2\.weight.* of the vision tower has NaN or infinity"):
        convert(tmp_path / "source", tmp_path / "out", ConvertOptions(vision=kind))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
