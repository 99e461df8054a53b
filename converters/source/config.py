"""config.json of a LLaVA-style checkpoint: the shapes of decoder, tower and projector, or a refusal.

Two families of files describe the same model. The authors' code writes `llava_llama`, the decoder's fields at the top
level and the tower as `mm_*`. transformers writes `llava` with a `text_config` and a `vision_config`, without the
fields that equal the class's defaults. The reader checks the known options that change the arithmetic, and refuses
those that this converter does not support.

Source: LLaVA `llava_arch.py` and `builder.py`; transformers 4.57 and 5.x `LlamaConfig` and `LlavaConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bimedix_edge.converters.source.strict_json import Fields, read_json
from bimedix_edge.converters.source.vision_config import (
    KNOWN_TOWER,
    MAX_CONFIG_BYTES,
    VisionConfig,
    named_tower,
    read_tower,
    vision_fields,
)
from bimedix_edge.errors import CheckpointError

__all__ = ["CheckpointConfig", "DecoderConfig", "Llama3Scaling", "read_config"]

MODEL_TYPES = ("llava_llama", "llava")
Aspect = Literal["pad", "crop"]


@dataclass(frozen=True)
class Llama3Scaling:
    """The frequency scaling of Llama 3.1; the names are those of `rope_scaling`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a Llama decoder, in llama.cpp's names."""

    n_vocab: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx_train: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tied: bool


@dataclass(frozen=True)
class CheckpointConfig:
    """The configuration of a checkpoint.

    Attributes:
        model_type: `llava_llama` (the authors' code) or `llava` (transformers).
        n_blocks: Number of the tower's blocks that run before the projector.
        tower: Directory inside the checkpoint that describes the tower, or empty.
    """

    model_type: str
    decoder: DecoderConfig
    vision: VisionConfig
    n_blocks: int
    tower: str = ""


def read_config(
    directory: Path, *, tower_directory: Path | None = None, aspect: Aspect | None = None
) -> CheckpointConfig:
    """Read config.json, and the tower's config.json if it has one.

    Args:
        directory: The checkpoint.
        tower_directory: CLIP checkpoint that the user named, for checkpoints that do not describe their tower.
        aspect: How an image that is not square becomes square; by default as the checkpoint says.

    Raises:
        CheckpointError: A file is missing or damaged, the model is of another family, or it needs an unsupported
            feature.
    """
    fields = read_json(directory / "config.json", MAX_CONFIG_BYTES)
    model_type = _model_type(fields)
    if "quantization_config" in fields:
        raise CheckpointError(
            "The checkpoint is already quantized: config.json has a quantization_config. "
            "Give the checkpoint as it was published, with 16-bit or 32-bit weights."
        )
    if model_type == "llava":
        config = _read_transformers(fields, directory)
    else:
        config = _read_original(fields, directory, tower_directory, aspect)
    preprocessing = replace(config.vision.preprocessing, aspect=aspect or "pad")
    return replace(config, vision=replace(config.vision, preprocessing=preprocessing))


def _model_type(fields: Fields) -> str:
    model_type = fields.text("model_type", "")
    if model_type == "phi3_v":
        raise CheckpointError(
            "This is Phi-3.5-vision (the 4B model), another family with its own image tiling, which neither this "
            "converter nor llama.cpp supports. Use the 8B checkpoint of BiMediX2, which is based on Llama."
        )
    if model_type not in MODEL_TYPES:
        given = ", ".join(str(item) for item in (model_type, *_architectures(fields)) if item) or "nothing"
        raise CheckpointError(
            f"config.json describes another kind of model ({given[:120]}); this converter supports model_type "
            f"{' or '.join(MODEL_TYPES)}. Give the directory of a BiMediX2 checkpoint."
        )
    return model_type


def _architectures(fields: Fields) -> list[object]:
    value = fields.raw("architectures")
    return value if isinstance(value, list) else []


def _read_original(
    fields: Fields, directory: Path, tower_directory: Path | None, aspect: Aspect | None
) -> CheckpointConfig:
    """Read the authors' layout: decoder fields and `mm_*` at the top level."""
    fields.choice("mm_projector_type", ("mlp2x_gelu",))
    fields.choice("mm_vision_select_feature", ("patch",), "patch")
    fields.choice("mm_use_im_start_end", (False,), False)
    fields.choice("mm_patch_merge_type", ("flat",), "flat")
    fields.choice("s2", (False,), False)
    _check_aspect(fields, aspect)
    tower = ""
    if "vision_config" in fields:
        vision = vision_fields(fields.child("vision_config"), directory)
    elif tower_directory is not None:
        vision = read_tower(tower_directory)
    elif (name := fields.text("mm_vision_tower", "")) == KNOWN_TOWER:
        vision = vision_fields(None, directory)
    else:
        tower, vision = name, named_tower(name, directory)
    if (given := fields.integer("mm_hidden_size", vision.n_embd)) != vision.n_embd:
        raise CheckpointError(
            f"mm_hidden_size in config.json is {given}, but the tower's width is {vision.n_embd}. "
            "Name the tower that this checkpoint was trained with."
        )
    layer = fields.integer("mm_vision_select_layer", -2, low=-1000, high=1000)
    return CheckpointConfig("llava_llama", _decoder(fields), vision, _n_blocks(layer, vision), tower)


def _check_aspect(fields: Fields, aspect: Aspect | None) -> None:
    given = fields.text("image_aspect_ratio", "pad")
    if given == "pad" or (given == "square" and aspect is not None):
        return
    raise CheckpointError(
        f"image_aspect_ratio in config.json is {given[:40]!r}, but BiMediX2 was trained with 'pad'. "
        "This converter does not support tiled images; for 'square', say yourself whether to pad or to crop."
    )


def _read_transformers(fields: Fields, directory: Path) -> CheckpointConfig:
    """Read transformers' layout: `text_config` and `vision_config`."""
    fields.choice("projector_hidden_act", ("gelu",), "gelu")
    fields.choice("vision_feature_select_strategy", ("default",), "default")
    fields.choice("multimodal_projector_bias", (True,), True)
    text = fields.child("text_config") if "text_config" in fields else Fields({}, "config.json: text_config")
    text.choice("model_type", ("llama",), "llama")
    # LlavaConfig without a vision_config means CLIP ViT-L/14-336; missing fields of one mean CLIPVisionConfig's
    tower = fields.child("vision_config") if "vision_config" in fields else None
    if tower is not None:
        tower.choice("model_type", ("clip_vision_model",), "clip_vision_model")
    vision = vision_fields(tower, directory)
    layer = fields.integer("vision_feature_layer", -2, low=-1000, high=1000)
    return CheckpointConfig("llava", _decoder(text), vision, _n_blocks(layer, vision))


def _n_blocks(layer: int, vision: VisionConfig) -> int:
    # hidden_states has n_layer + 1 entries, the first before any block: -2 of 24 layers is the output of block 23
    n_blocks = layer if layer >= 0 else vision.n_layer + 1 + layer
    if not 0 <= n_blocks <= vision.n_layer:
        raise CheckpointError(
            f"The feature layer in config.json is {layer}, but the tower has {vision.n_layer} layers. "
            "Name the tower that this checkpoint was trained with."
        )
    return n_blocks


def _decoder(fields: Fields) -> DecoderConfig:
    """Read a Llama decoder, with LlamaConfig's defaults for missing fields."""
    fields.choice("hidden_act", ("silu",), "silu")
    for option in ("attention_bias", "mlp_bias", "use_sliding_window"):
        fields.choice(option, (False,), False)
    for option in ("sliding_window", "num_local_experts", "num_experts", "partial_rotary_factor"):
        if option in fields and fields.raw(option) != 1:
            raise CheckpointError(
                f"{fields.where} has {option}, which this converter does not support. "
                "Give the directory of a BiMediX2 checkpoint, whose decoder is a plain Llama."
            )
    n_embd = fields.integer("hidden_size", 4096, high=1 << 17)
    n_head = fields.integer("num_attention_heads", 32, high=1 << 12)
    n_head_kv = fields.integer("num_key_value_heads", n_head, high=1 << 12)
    head_dim = fields.integer("head_dim", max(n_embd // n_head, 1), high=1 << 12)
    if n_head % n_head_kv or head_dim % 2 or ("head_dim" not in fields and n_embd % n_head):
        raise CheckpointError(
            f"The attention in {fields.where} contradicts itself: {n_head} heads, num_key_value_heads {n_head_kv}, "
            f"hidden_size {n_embd} and head_dim {head_dim}. Download the checkpoint again."
        )
    rope = _rope(fields)
    return DecoderConfig(
        n_vocab=fields.integer("vocab_size", 32000, high=1 << 22),
        n_embd=n_embd,
        n_ff=fields.integer("intermediate_size", 11008, high=1 << 20),
        n_layer=fields.integer("num_hidden_layers", 32, high=1 << 10),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_ctx_train=fields.integer("max_position_embeddings", 2048, high=1 << 30),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
        rope_theta=_theta(fields, rope),
        rope_scaling=_scaling(rope),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _rope(fields: Fields) -> Fields:
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters, and reads either
    for name in ("rope_parameters", "rope_scaling"):
        if name in fields:
            return fields.child(name)
    return Fields({}, f"{fields.where}: rope_scaling")


def _theta(fields: Fields, rope: Fields) -> float:
    return rope.number("rope_theta") if "rope_theta" in rope else fields.number("rope_theta", 10000.0)


def _scaling(rope: Fields) -> Llama3Scaling | None:
    # `type` is the field's name before transformers 4.43
    kind = rope.choice("rope_type" if "rope_type" in rope else "type", ("llama3", "default"), "default")
    if kind == "default":
        return None
    scaling = Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings", high=1 << 30),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise CheckpointError(
            f"high_freq_factor {scaling.high_freq_factor:g} in {rope.where} is not above low_freq_factor "
            f"{scaling.low_freq_factor:g}. Download the checkpoint again."
        )
    return scaling
