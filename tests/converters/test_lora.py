"""LoRA adapters merged on the fly: compared with an explicit merge, in every layout; and refused adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from make_checkpoint import Form, Shape, edit_json, make_checkpoint, published_name, tensor_values, write_json
from safetensors.numpy import load_file, save_file

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.naming import LAYOUTS
from bimedix_edge.converters.vision import onnx_file
from bimedix_edge.errors import CheckpointError

RANK, ALPHA = 8, 20
SHAPES = {name: array.shape for name, array in tensor_values(Shape(), 0).items()}
DECODER = [name for name in SHAPES if "_proj" in name and name.startswith("model.")]
OTHERS = ["projector.2.weight", "vision.encoder.layers.1.mlp.fc1.weight", "lm_head.weight"]


def halves(name: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    rows, columns = SHAPES[name]
    a, b = (rng.standard_normal(size) / 16 for size in ((RANK, columns), (rows, RANK)))
    return a.astype(np.float32), b.astype(np.float32)


def make_adapter(
    directory: Path,
    *,
    layout: str = "original",
    targets: list[str] | None = None,
    dtype: Any = np.float32,
    tensors: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    directory.mkdir()
    saved = dict(tensors or {})
    for name in DECODER + OTHERS if targets is None else targets:
        for half, array in zip("AB", halves(name), strict=True):
            module = published_name(name, layout).removesuffix(".weight")
            saved[f"base_model.model.{module}.lora_{half}.weight"] = array.astype(dtype)
    save_file(saved, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": ["q_proj"]}
    # fields that peft writes with unused features
    fields |= {"use_dora": False, "rank_pattern": {}, "fan_in_fan_out": False, "loftq_config": {}, "corda_config": None}
    write_json(directory / "adapter_config.json", fields | {"init_lora_weights": True, "use_rslora": False} | config)
    return directory


def merged(name: str, scale: float = ALPHA / RANK) -> Any:
    a, b = (half.astype(np.float64) for half in halves(name))
    return (tensor_values(Shape(), 0)[name] + scale * (b @ a)).astype(np.float32)


def merged_by_hand(source: Path, target: Path) -> Path:
    """Write a checkpoint in float32 whose weights include the adapter."""
    make_checkpoint(target, form=Form(dtype="f32"))
    tensors = load_file(target / "model.safetensors")
    for name in DECODER + OTHERS:
        tensors[published_name(name, "original")] = merged(name)
    save_file(tensors, target / "model.safetensors")
    assert source != target
    return target


@pytest.mark.parametrize("file_type", ["F32", "Q4_K_M"])
def test_bytes_equal_those_of_a_merged_checkpoint(file_type: str, checkpoint: Path, tmp_path: Path) -> None:
    by_hand = merged_by_hand(checkpoint, tmp_path / "by_hand")
    expected = convert(by_hand, tmp_path / "expected", ConvertOptions(file_type=file_type, name="same"))
    adapter = make_adapter(tmp_path / "adapter")
    given = convert(checkpoint, tmp_path / "given", ConvertOptions(file_type=file_type, name="same", lora=adapter))
    assert given.files == expected.files
    plain = convert(checkpoint, tmp_path / "plain", ConvertOptions(file_type=file_type, name="same"))
    assert given.files["decoder"] != plain.files["decoder"]
    assert given.files["vision"] != plain.files["vision"]


def test_q_and_k_are_merged_before_they_are_permuted(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F32", lora=make_adapter(tmp_path / "adapter")))
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "out/decoder.gguf").tensors}
    for part, n_head in (("q", 4), ("k", 2)):
        rows = merged(f"model.layers.2.self_attn.{part}_proj.weight")
        # llama.cpp's own expression, LlamaModel.permute
        expected = rows.reshape(n_head, 2, len(rows) // n_head // 2, -1).swapaxes(1, 2).reshape(rows.shape)
        np.testing.assert_array_equal(written[f"blk.2.attn_{part}.weight"], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_fits_every_other(layout: str, checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", layout=layout)
    source = Checkpoint(checkpoint, adapter_directory=adapter)
    assert source.adapted == sorted(DECODER + OTHERS)
    np.testing.assert_array_equal(source.rows(DECODER[0], slice(None)), merged(DECODER[0]))
    np.testing.assert_array_equal(source.rows(DECODER[0], np.array([7, 3])), merged(DECODER[0])[[7, 3]])


def test_rank_stabilised_and_bfloat16(checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", use_rslora=True)
    values = Checkpoint(checkpoint, adapter_directory=adapter).rows(DECODER[0], slice(0, 4))
    np.testing.assert_array_equal(values, merged(DECODER[0], ALPHA / RANK**0.5)[:4])
    half = make_adapter(tmp_path / "b", dtype=ml_dtypes.bfloat16)
    values = Checkpoint(checkpoint, adapter_directory=half).rows(DECODER[0], slice(None))
    assert 0 < np.abs(values - merged(DECODER[0])).max() < 0.05


def test_saved_modules_replace_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    new = {name: rng.standard_normal(SHAPES[name]).astype(np.float32) for name in ("projector.0.weight",)}
    tensors = {f"base_model.model.{published_name(name, 'original')}": array for name, array in new.items()}
    adapter = make_adapter(tmp_path / "adapter", tensors=tensors, modules_to_save=["mm_projector"])
    source = Checkpoint(checkpoint, adapter_directory=adapter)
    np.testing.assert_array_equal(source.rows("projector.0.weight", slice(None)), new["projector.0.weight"])


def test_blocks_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "source")
    adapter = make_adapter(tmp_path / "adapter")
    whole = convert(source, tmp_path / "whole", ConvertOptions(file_type="F32", lora=adapter))
    monkeypatch.setattr("bimedix_edge.converters.decoder.quantize.JOB_VALUES", 700)
    assert convert(source, tmp_path / "blocks", ConvertOptions(file_type="F32", lora=adapter)).files == whole.files


def test_the_manifest_names_the_adapter_by_its_hashes(checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(lora=make_adapter(tmp_path / "adapter")))
    hashed = {key for key in manifest.source if "lora" in key}
    assert hashed == {"sha256:lora:adapter_config.json", "sha256:lora:adapter_model.safetensors"}
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "has use_dora"),
        ({"bias": "lora_only"}, "^bias in adapter_config.json is"),
        ({"peft_type": "IA3"}, "^peft_type in adapter_config.json is"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "has alpha_pattern"),
        ({"trainable_token_indices": [1]}, "has trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 0}, "^r in adapter_config.json is 0"),
        ({"r": 4}, r"has the shape \[8, 256\] instead of \[4, 256\]"),
        ({"lora_alpha": "x"}, "^lora_alpha in adapter_config.json is"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(
    config: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", **config)
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint, tmp_path / "out", ConvertOptions(lora=adapter))
    assert list(tmp_path.iterdir()) == [adapter]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update({"base_model.model.h.0.attn.c_attn.lora_A.weight": np.ones((8, 4), np.float32)}),
         r"h\.0\.attn\.c_attn\.lora_A\.weight matches nothing"),
        (lambda t: t.update({"base_model.model.model.layers.3.mlp.up_proj.lora_A.weight": np.ones((8, 2), np.float32)}),
         r"layers\.3\.mlp\.up_proj\.lora_A\.weight matches nothing"),
        (lambda t: t.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"), "lacks its other half"),
        (lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": np.ones((8, 8), np.float32)}),
         r"up_proj\.lora_B\.weight has the shape \[8, 8\] instead of \[512, 8\]"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((8, 288), np.float32)}),
         "lora_embedding_A matches nothing"),
        (lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.weight": np.ones((512, 256), np.float32)}),
         "are for the same weight"),
        (lambda t: t.update({"base_model.model.lm_head.weight": np.ones((289, 256), np.float32)}),
         r"lm_head\.weight has the shape \[289, 256\] instead of \[288, 256\]"),
        (lambda t: t.update({"base_model.model.lm_head.weight": np.ones((288, 256), np.int8)}), "lm_head.weight is I8"),
        (lambda t: t["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].__setitem__((0, 0), np.nan),
         "NaN or infinity"),
        (lambda t: t.clear(), "it has no tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(edit: Any, message: str, checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", targets=DECODER)
    tensors = load_file(adapter / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint, tmp_path / "out", ConvertOptions(lora=adapter))
    assert list(tmp_path.iterdir()) == [adapter]


def test_an_adapter_of_tied_output_is_not_lost(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", shape=Shape(tied=True))
    with pytest.raises(CheckpointError, match=r"lm_head\.lora_A\.weight matches nothing"):
        Checkpoint(source, adapter_directory=make_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize("name", ["adapter_model.bin", "non_lora_trainables.bin", "adapter_model.safetensors"])
def test_pickles_are_not_opened(name: str, checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    if name == "adapter_model.bin":
        (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(b"\x80\x02" + b"cos\nsystem\n" * 9)
    with pytest.raises(CheckpointError, match=rf"{name}.* pickle, which can run any"):
        convert(checkpoint, tmp_path / "out", ConvertOptions(lora=adapter))


def test_no_adapter_at_all(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        Checkpoint(checkpoint, adapter_directory=tmp_path / "empty")
    write_json(tmp_path / "empty/adapter_config.json", {"peft_type": "LORA", "r": 8})
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be read"):
        Checkpoint(checkpoint, adapter_directory=tmp_path / "empty")
    edit_json(tmp_path / "empty/adapter_config.json", lambda config: config.clear())
    with pytest.raises(CheckpointError, match="The field peft_type is missing"):
        Checkpoint(checkpoint, adapter_directory=tmp_path / "empty")


def test_the_graph_is_written_from_merged_weights(checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="F16", lora=make_adapter(tmp_path / "adapter")))
    tensors = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out/vision.onnx").graph.initializer}
    written = onnx.numpy_helper.to_array(tensors["projector.2.weight"])
    np.testing.assert_array_equal(written.T, merged("projector.2.weight"))
    assert onnx_file.IR_VERSION == 8
    assert json.loads((tmp_path / "out/manifest.json").read_text())["format"] == 1


@pytest.mark.parity
def test_merged_as_peft_merges(tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    base = torch.nn.Sequential(torch.nn.Linear(256, 512, bias=False))
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_rslora=True)
    model = peft.get_peft_model(base, config)
    layer = model.base_model.model[0]
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = halves(name)
    with torch.no_grad():
        layer.base_layer.weight[:] = torch.from_numpy(tensor_values(Shape(), 0)[name])
        layer.lora_A["default"].weight[:], layer.lora_B["default"].weight[:] = torch.from_numpy(a), torch.from_numpy(b)
    expected = model.merge_and_unload()[0].weight.detach().numpy()
    np.testing.assert_allclose(merged(name, ALPHA / RANK**0.5), expected, atol=1e-6)
    model_source = Checkpoint(
        make_checkpoint(tmp_path / "source"), adapter_directory=make_adapter(tmp_path / "adapter", use_rslora=True)
    )
    np.testing.assert_allclose(model_source.rows(name, slice(None)), expected, atol=1e-6)
