"""What a generated checkpoint says about itself: its shape, its configuration files, and the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bimedix_edge.converters.source.checkpoint import declare
from bimedix_edge.converters.source.config import CheckpointConfig, DecoderConfig
from bimedix_edge.converters.source.vision_config import VisionConfig
from bimedix_edge.imaging.preprocess import Preprocessing

__all__ = [
    "SHAPES",
    "Shape",
    "checkpoint_config",
    "decoder_config",
    "original_config",
    "published_name",
    "tensor_shapes",
    "transformers_config",
    "vision_config",
]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a checkpoint; by default a tiny one, with rows of 256 so that K-quants apply."""

    n_embd: int = 256
    n_ff: int = 512
    n_layer: int = 3
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int | None = None
    n_vocab: int = 288
    vision_embd: int = 32
    vision_ff: int = 64
    vision_layers: int = 4
    vision_heads: int = 2
    image_px: int = 28
    patch_px: int = 7
    select_layer: int = -2
    tied: bool = False
    scaling: bool = True


_VIT_L = {
    "vision_embd": 1024,
    "vision_ff": 4096,
    "vision_layers": 24,
    "vision_heads": 16,
    "image_px": 336,
    "patch_px": 14,
}
_LLAMA_3: dict[str, Any] = {"n_vocab": 128257, "n_head_kv": 8, **_VIT_L}

# the published ones, the 1B's decoder under the same tower, and two of the 70B's 80 layers
SHAPES: dict[str, Shape] = {
    "demo": Shape(
        n_ff=768, n_layer=4, head_dim=64, n_vocab=1657, vision_embd=192, vision_ff=768, vision_layers=6, vision_heads=3,
        image_px=112, patch_px=14,
    ),
    "1b": Shape(n_embd=2048, n_ff=8192, n_layer=16, n_head=32, **_LLAMA_3),
    "8b": Shape(n_embd=4096, n_ff=14336, n_layer=32, n_head=32, **_LLAMA_3),
    "70b-slice": Shape(n_embd=8192, n_ff=28672, n_layer=2, n_head=64, **_LLAMA_3),
}  # fmt: skip


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the canonical name and shape of every tensor, in the order in which publishers save them."""
    required, optional = declare(checkpoint_config(shape))
    sizes = required | {name: size for name, size in optional.items() if name != "lm_head.weight"}
    last = {"lm_head.weight": sizes.pop("lm_head.weight")} if "lm_head.weight" in sizes else {}
    first = {name: sizes.pop(name) for name in ("model.embed_tokens.weight",)}
    return first | sizes | last


def checkpoint_config(shape: Shape) -> CheckpointConfig:
    """Return the configuration as `read_config` would return it."""
    decoder = DecoderConfig(
        n_vocab=shape.n_vocab,
        n_embd=shape.n_embd,
        n_ff=shape.n_ff,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        head_dim=shape.head_dim or shape.n_embd // shape.n_head,
        n_ctx_train=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=None,
        tied=shape.tied,
    )
    vision = VisionConfig(
        n_layer=shape.vision_layers,
        n_embd=shape.vision_embd,
        n_head=shape.vision_heads,
        n_ff=shape.vision_ff,
        patch_px=shape.patch_px,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        preprocessing=Preprocessing(image_size_px=shape.image_px),
    )
    return CheckpointConfig("llava_llama", decoder, vision, shape.vision_layers)


def published_name(name: str, layout: str) -> str:
    """Return a canonical tensor name as a layout, one of `naming.LAYOUTS`, spells it."""
    if layout == "original":
        if name.startswith("vision."):
            return "model.vision_tower.vision_tower.vision_model." + name[7:]
        return "model.mm_" + name if name.startswith("projector.") else name
    outer = "model." if layout == "transformers_new" else ""
    if name.startswith("vision."):
        return f"{outer}vision_tower.vision_model." + name[7:]
    if name.startswith("projector."):
        return f"{outer}multi_modal_projector.linear_{1 if name[10] == '0' else 2}" + name[11:]
    if layout == "transformers_old":
        return "language_model." + name
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def decoder_config(shape: Shape) -> dict[str, Any]:
    """Return a Llama decoder's fields of config.json."""
    config: dict[str, Any] = {
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
    }
    if shape.head_dim:
        config["head_dim"] = shape.head_dim
    if shape.scaling:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config


def vision_config(shape: Shape) -> dict[str, Any]:
    """Return a CLIP tower's fields of config.json."""
    return {
        "hidden_size": shape.vision_embd,
        "intermediate_size": shape.vision_ff,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "image_size": shape.image_px,
        "patch_size": shape.patch_px,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 16,
    }


def original_config(shape: Shape) -> dict[str, Any]:
    """Return config.json in the authors' layout."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **decoder_config(shape),
        "mm_vision_tower": "vision_tower",
        "mm_hidden_size": shape.vision_embd,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": shape.select_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
    }


def transformers_config(shape: Shape) -> dict[str, Any]:
    """Return config.json in transformers' layout."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": shape.n_vocab - 1,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": shape.select_layer,
        "vision_feature_select_strategy": "default",
        "text_config": {"model_type": "llama", **decoder_config(shape)},
        "vision_config": {"model_type": "clip_vision_model", **vision_config(shape)},
    }
