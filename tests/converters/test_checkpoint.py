"""Checkpoints: the published layouts are accepted, others are refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import Edits, Form, Shape, edit_json, make_checkpoint, tensor_values, vision_config, write_json
from safetensors.numpy import load_file, save_file

from bimedix_edge.converters.source.checkpoint import Checkpoint, declare
from bimedix_edge.converters.source.config import Llama3Scaling, read_config
from bimedix_edge.converters.source.naming import LAYOUTS
from bimedix_edge.errors import CheckpointError

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny", shape=Shape(n_layer=1))


def _config(path: Path, edit: Edit) -> None:
    edit_json(path / "config.json", edit)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_shards", [1, 4])
def test_layouts_give_the_same_tensors(layout: str, n_shards: int, tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "x", form=Form(layout=layout, n_shards=n_shards)))
    assert checkpoint.layout == layout
    assert sum(name.endswith(".safetensors") for name in checkpoint.files) == n_shards
    for name, values in tensor_values(Shape(), 0).items():
        assert checkpoint.shape(name) == values.shape
        assert np.array_equal(checkpoint.rows(name, slice(None)), values)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_dtypes_give_the_same_values(dtype: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "x", form=Form(dtype=dtype)))
    expected = tensor_values(Shape(), 0)["model.layers.1.self_attn.q_proj.weight"]
    order = np.array([5, 0, 255])
    assert np.array_equal(checkpoint.rows("model.layers.1.self_attn.q_proj.weight", order), expected[order])


def test_links_as_in_the_hub_cache(tiny: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in tiny.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert Checkpoint(snapshot).layout == "original"


def test_buffers_of_old_versions_are_skipped(tmp_path: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(32, np.float32)

    assert Checkpoint(make_checkpoint(tmp_path / "x", edits=Edits(tensors=add))).layout == "original"


def test_blocks_after_the_feature_layer_may_be_missing(tmp_path: Path) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "post_layernorm" in name or "encoder.layers.3." in name]:
            del tensors[name]

    assert Checkpoint(make_checkpoint(tmp_path / "x", edits=Edits(tensors=cut))).config.n_blocks == 3


def test_defaults_of_an_omitting_text_config(tmp_path: Path) -> None:
    text = {"vocab_size": 128320, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    write_json(tmp_path / "config.json", {"model_type": "llava", "text_config": text})
    config = read_config(tmp_path)
    decoder = config.decoder
    assert (decoder.n_embd, decoder.n_ff, decoder.n_layer, decoder.n_head, decoder.n_head_kv) == (
        4096,
        11008,
        32,
        32,
        32,
    )
    assert (decoder.n_ctx_train, decoder.rms_norm_eps, decoder.rope_theta) == (2048, 1e-6, 5e5)
    assert decoder.rope_scaling is None
    assert not decoder.tied
    # LlavaConfig without a vision_config is CLIP ViT-L/14-336
    assert (config.vision.n_layer, config.vision.n_embd, config.vision.n_patches, config.n_blocks) == (
        24,
        1024,
        576,
        23,
    )


def test_known_tower_by_name(tiny: Path) -> None:
    _config(tiny, lambda c: c.update(mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024))
    vision = read_config(tiny).vision
    assert (vision.n_layer, vision.n_head, vision.n_ff, vision.patch_px, vision.n_patches) == (24, 16, 4096, 14, 576)
    assert vision.preprocessing.image_size_px == 336
    assert vision.activation == "quick_gelu"
    required, optional = declare(read_config(tiny))
    assert sum(name.startswith("vision.") for name in (*required, *optional)) == 24 * 16 + 7


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_rope_in_every_spelling(where: str, kind: str, tiny: Path) -> None:
    def move(config: dict[str, Any]) -> None:
        rope = config.pop("rope_scaling")
        rope[kind] = rope.pop("rope_type")
        if where == "rope_parameters":
            rope["rope_theta"] = config.pop("rope_theta")
        config[where] = rope

    _config(tiny, move)
    decoder = read_config(tiny).decoder
    assert decoder.rope_theta == 500000.0
    assert decoder.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_preprocessor_of_the_tower(tiny: Path) -> None:
    write_json(
        tiny / "vision_tower" / "preprocessor_config.json",
        {
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.5, 0.5, 0.5],
            "crop_size": {"height": 28, "width": 28},
            "size": 28,
        },
    )
    preprocessing = read_config(tiny).vision.preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
    assert (preprocessing.pad_rgb, preprocessing.image_size_px) == ((127, 102, 76), 28)


def test_aspect_is_the_users_choice(tiny: Path) -> None:
    assert read_config(tiny).vision.preprocessing.aspect == "pad"
    assert read_config(tiny, aspect="crop").vision.preprocessing.aspect == "crop"
    _config(tiny, lambda c: c.update(image_aspect_ratio="square"))
    assert read_config(tiny, aspect="crop").vision.preprocessing.aspect == "crop"
    with pytest.raises(CheckpointError, match="say yourself whether to pad or to crop"):
        read_config(tiny)


def test_tower_from_a_clip_checkpoint(tmp_path: Path) -> None:
    without = make_checkpoint(tmp_path / "without", form=Form(tower="absent"))
    shutil.rmtree(without / "vision_tower")
    with pytest.raises(CheckpointError, match="Name the directory of that CLIP tower"):
        Checkpoint(without)
    clip = _clip_checkpoint(tmp_path / "clip")
    whole = Checkpoint(make_checkpoint(tmp_path / "whole"))
    joined = Checkpoint(without, tower_directory=clip)
    name = "vision.encoder.layers.2.mlp.fc1.weight"
    assert np.array_equal(joined.array(name), whole.array(name))
    with pytest.raises(CheckpointError, match="Leave the tower's directory out"):
        Checkpoint(tmp_path / "whole", tower_directory=clip)


def test_tower_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not contain the vision tower's tensors"):
        Checkpoint(make_checkpoint(tmp_path / "x", form=Form(tower="absent")))


def _clip_checkpoint(directory: Path) -> Path:
    """Write a CLIP checkpoint with both halves, as OpenAI's is published."""
    directory.mkdir()
    vision = {
        f"vision_model.{name[7:]}": array for name, array in tensor_values(Shape(), 0).items() if name[:7] == "vision."
    }
    text = {"text_model.embeddings.position_embedding.weight": np.zeros((4, 4), np.float32)}
    text |= {"visual_projection.weight": np.zeros((4, 32), np.float32), "logit_scale": np.zeros((), np.float32)}
    vision["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    save_file(vision | text, directory / "model.safetensors")
    write_json(directory / "config.json", {"model_type": "clip", "vision_config": vision_config(Shape())})
    return directory


# --- refusals -------------------------------------------------------------------------------------------------------

BAD_CONFIGS: dict[str, tuple[Edit, str]] = {
    "phi3": (lambda c: c.update(model_type="phi3_v"), r"Phi-3\.5-vision \(the 4B model\), another family"),
    "other": (lambda c: c.update(model_type="qwen2_vl"), r"another kind of model \(qwen2_vl, LlavaLlamaForCausalLM\)"),
    "none": (lambda c: [c.pop("model_type"), c.pop("architectures")], r"another kind of model \(nothing\)"),
    "model_type_as_list": (lambda c: c.update(model_type=["llava"]), "It supports a string"),
    "quantized": (lambda c: c.update(quantization_config={"bits": 4}), "already quantized"),
    "start_end": (lambda c: c.update(mm_use_im_start_end=True), "start_end in config.json is true, .* supports false"),
    "projector": (lambda c: c.update(mm_projector_type="linear"), 'is "linear", .* It supports "mlp2x_gelu"'),
    "no_projector": (lambda c: c.pop("mm_projector_type"), "The field mm_projector_type is missing"),
    "cls_patch": (lambda c: c.update(mm_vision_select_feature="cls_patch"), 'It supports "patch"'),
    "spatial": (lambda c: c.update(mm_patch_merge_type="spatial_unpad"), 'It supports "flat"'),
    "s2": (lambda c: c.update(s2=True), "s2 in config.json is true, which this converter does not support"),
    "anyres": (lambda c: c.update(image_aspect_ratio="anyres"), "does not support tiled images"),
    "far_layer": (lambda c: c.update(mm_vision_select_layer=-6), "is -6, but the tower has 4 layers"),
    "layers": (lambda c: c.update(mm_vision_select_layer=[-2, -5]), "It supports a whole number"),
    "hidden_size": (lambda c: c.update(mm_hidden_size=1024), "is 1024, but the tower's width is 32"),
    "tower_outside": (lambda c: c.update(mm_vision_tower="../vision_tower"), "directory inside the checkpoint"),
    "tower_absolute": (lambda c: c.update(mm_vision_tower="/etc"), "directory inside the checkpoint"),
    "tower_parent": (lambda c: c.update(mm_vision_tower=".."), "directory inside the checkpoint"),
    "other_tower": (lambda c: c.update(mm_vision_tower="google/siglip"), "directory inside the checkpoint"),
    "attention_bias": (lambda c: c.update(attention_bias=True), "attention_bias in config.json is true"),
    "mlp_bias": (lambda c: c.update(mlp_bias=True), "mlp_bias in config.json is true, .* It supports false"),
    "gelu": (lambda c: c.update(hidden_act="gelu"), 'hidden_act in config.json is "gelu", .* It supports "silu"'),
    "yarn": (lambda c: c["rope_scaling"].update(rope_type="yarn"), 'is "yarn", .* supports "llama3" or "default"'),
    "no_factor": (lambda c: c["rope_scaling"].pop("factor"), "The field factor is missing"),
    "equal_factors": (lambda c: c["rope_scaling"].update(high_freq_factor=1.0), "is not above low_freq_factor"),
    "rope_as_text": (lambda c: c.update(rope_scaling="llama3"), "config.json: rope_scaling is not a JSON object"),
    "sliding": (lambda c: c.update(sliding_window=4096), "has sliding_window"),
    "experts": (lambda c: c.update(num_local_experts=8), "has num_local_experts"),
    "heads": (lambda c: c.update(num_key_value_heads=3), "contradicts itself: 4 heads, num_key_value_heads 3"),
    "no_heads": (lambda c: c.update(num_attention_heads=0), "a whole number from 1"),
    "odd_heads": (lambda c: c.update(head_dim=63), "contradicts itself: .* head_dim 63"),
    "width": (lambda c: c.update(num_attention_heads=7, num_key_value_heads=7), "contradicts itself: 7 heads"),
    "absurd_layers": (lambda c: c.update(num_hidden_layers=10**9), "a whole number from 1 to 1024"),
    "negative": (lambda c: c.update(hidden_size=-256), "a whole number from 1"),
    "text_number": (lambda c: c.update(hidden_size="256"), 'is "256", which'),
    "float_number": (lambda c: c.update(hidden_size=256.0), "is 256.0, which"),
    "boolean_number": (lambda c: c.update(hidden_size=True), "is true, which"),
    "zero_eps": (lambda c: c.update(rms_norm_eps=0), "a number above 0"),
    "huge_theta": (lambda c: c.update(rope_theta=1e300), "a number above 0"),
    "tied_as_text": (lambda c: c.update(tie_word_embeddings="no"), "true or false"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config(case: str, tiny: Path) -> None:
    edit, message = BAD_CONFIGS[case]
    _config(tiny, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint(tiny)
    assert len(str(caught.value)) < 500


BAD_TRANSFORMERS: dict[str, tuple[Edit, str]] = {
    "act": (lambda c: c.update(projector_hidden_act="relu"), "projector_hidden_act"),
    "full": (lambda c: c.update(vision_feature_select_strategy="full"), "vision_feature_select_strategy"),
    "bias": (lambda c: c.update(multimodal_projector_bias=False), "multimodal_projector_bias"),
    "text": (
        lambda c: c["text_config"].update(model_type="mistral"),
        'text_config is "mistral", .* It supports "llama"',
    ),
    "tower": (
        lambda c: c["vision_config"].update(model_type="siglip"),
        'vision_config is "siglip", .* It supports "clip_vision_model"',
    ),
    "tower_act": (lambda c: c["vision_config"].update(hidden_act="relu"), 'It supports "quick_gelu" or "gelu"'),
    "channels": (lambda c: c["vision_config"].update(num_channels=1), "num_channels"),
    "patch": (lambda c: c["vision_config"].update(patch_size=64), "image_size 28 is less than patch_size 64"),
    "tower_heads": (
        lambda c: c["vision_config"].update(num_attention_heads=5),
        "hidden_size 32 is not a multiple of 5 heads",
    ),
    "text_as_list": (lambda c: c.update(text_config=[]), "text_config is not a JSON object"),
}


@pytest.mark.parametrize("case", BAD_TRANSFORMERS)
def test_bad_transformers_config(case: str, tmp_path: Path) -> None:
    edit, message = BAD_TRANSFORMERS[case]
    make_checkpoint(
        tmp_path / "x", shape=Shape(n_layer=1), form=Form(layout="transformers_old"), edits=Edits(config=edit)
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path / "x")


BAD_PREPROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "bilinear": ({"resample": 2}, "resample"),
    "no_normalize": ({"do_normalize": False}, "do_normalize"),
    "rescale": ({"rescale_factor": 1.0}, "rescale_factor"),
    "size": ({"size": {"shortest_edge": 224}}, "is 224, but the tower's image_size is 28"),
    "crop": ({"crop_size": 224}, "is 224, but the tower's image_size is 28"),
    "mean": ({"image_mean": [0.5, 0.5]}, "three numbers"),
    "std": ({"image_std": [0.5, 0.5, 0]}, "three numbers"),
    "text": ({"image_std": "0.5"}, "It supports an array"),
}


@pytest.mark.parametrize("case", BAD_PREPROCESSORS)
def test_bad_preprocessor(case: str, tiny: Path) -> None:
    fields, message = BAD_PREPROCESSORS[case]
    write_json(tiny / "vision_tower" / "preprocessor_config.json", fields)
    with pytest.raises(CheckpointError, match=message):
        read_config(tiny)


def test_everything_that_differs_is_listed_at_once(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["model.norm.weight"]
        del tensors["model.mm_projector.2.bias"]
        tensors["model.image_newline"] = np.zeros(256, np.float32)
        tensors["vision.foreign"] = np.zeros(2, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((512, 256), np.int8)

    directory = make_checkpoint(tmp_path / "x", edits=Edits(tensors=spoil))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(directory)
    message = str(caught.value)
    for fault in (
        "model.norm.weight is missing",
        "projector.2.bias is missing",
        "model.image_newline is not expected",
        "vision.foreign is not expected",
        "lm_head.weight has the shape [256, 288] instead of [288, 256]",
        "model.layers.0.mlp.up_proj.weight is I8 instead of F32, F16, BF16",
    ):
        assert fault in message


def test_a_long_list_is_cut_with_a_count(tiny: Path) -> None:
    _config(tiny, lambda c: c.update(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match=r"is missing; and 6 more. Download"):
        Checkpoint(tiny)


def test_tied_embeddings(tmp_path: Path) -> None:
    assert Checkpoint(make_checkpoint(tmp_path / "without", shape=Shape(tied=True))).config.decoder.tied

    def copy(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    assert Checkpoint(
        make_checkpoint(tmp_path / "with", shape=Shape(tied=True), edits=Edits(tensors=copy))
    ).config.decoder.tied

    def differ(tensors: dict[str, Any]) -> None:
        copy(tensors)
        tensors["lm_head.weight"][3, 3] += 1

    make_checkpoint(tmp_path / "other", shape=Shape(tied=True), edits=Edits(tensors=differ))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embeddings"):
        Checkpoint(tmp_path / "other")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "weights.dat"])
def test_pickle_weights_are_not_opened(name: str, tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / name).write_bytes(b"\x80\x02cposix\nsystem\nq\x00.")
    with pytest.raises(CheckpointError, match=f"only {name}, a pickle, .* Get the checkpoint in safetensors"):
        Checkpoint(tiny)


def test_pickle_beside_safetensors_is_ignored(tiny: Path) -> None:
    (tiny / "training_args.bin").write_bytes(b"\x80\x02.")
    assert Checkpoint(tiny).layout == "original"


def test_no_weights_no_config_no_directory(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        Checkpoint(tiny)
    (tiny / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint(tiny)
    with pytest.raises(CheckpointError, match=r"is not a directory. Give the directory of a checkpoint"):
        Checkpoint(tiny / "none")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 200_000, b"9" * 9999]
)
def test_config_that_is_no_object(text: bytes, tiny: Path) -> None:
    (tiny / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not (valid JSON|a JSON object)"):
        Checkpoint(tiny)


def test_config_that_is_too_long_or_a_directory(tiny: Path) -> None:
    (tiny / "config.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(CheckpointError, match="more than the limit of 1048576"):
        Checkpoint(tiny)
    (tiny / "config.json").unlink()
    (tiny / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        Checkpoint(tiny)


# --- the index of shards --------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", shape=Shape(n_layer=1), form=Form(n_shards=2))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "a\\b", "..", "", "C:x", ".hidden"])
def test_shard_outside_the_directory(name: str, sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda v: v["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(CheckpointError, match=r"names the file .* could lie outside"):
        Checkpoint(sharded)


def test_missing_shard(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    with pytest.raises(CheckpointError, match=f"{SHARD} cannot be read .*No such file"):
        Checkpoint(sharded)


def test_truncated_shard(sharded: Path) -> None:
    data = (sharded / SHARD).read_bytes()
    (sharded / SHARD).write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=f"{SHARD} is not a whole safetensors file: its tensors end at byte"):
        Checkpoint(sharded)


def test_index_that_disagrees_with_the_shards(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda v: v["weight_map"].pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is not listed but in model-0000"):
        Checkpoint(sharded)
    edit_json(sharded / INDEX, lambda v: v["weight_map"].update({"model.norm.weight": SHARD, "more": SHARD}))
    with pytest.raises(CheckpointError, match=f"is listed but not in {SHARD}"):
        Checkpoint(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    first = load_file(sharded / SHARD.replace("00001", "00002"))
    name = next(iter(first))
    second = load_file(sharded / SHARD)
    save_file(second | {name: first[name]}, sharded / SHARD)
    with pytest.raises(CheckpointError, match="is not listed but in"):
        Checkpoint(sharded)


@pytest.mark.parametrize("value", [[], {}, {"weight_map": []}, {"weight_map": {"a": 7}}, "x"])
def test_malformed_index(value: Any, sharded: Path) -> None:
    (sharded / INDEX).write_text(json.dumps(value))
    with pytest.raises(CheckpointError):
        Checkpoint(sharded)


def test_two_layouts_at_once(tmp_path: Path) -> None:
    def mix(tensors: dict[str, Any]) -> None:
        tensors["language_model.model.norm.weight"] = tensors.pop("model.norm.weight")

    with pytest.raises(CheckpointError, match=r"follow neither .*, or both"):
        Checkpoint(make_checkpoint(tmp_path / "x", edits=Edits(tensors=mix)))
