"""Tiny random checkpoints in every published layout, written with the safetensors package as their publishers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from bimedix_edge.converters.tokenizer import SPLIT_PATTERN, byte_alphabet

DTYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>")
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ù", "Ħ"), ("i", "n"), ("in", "g"), ("Ġ", "a"), ("1", "2"))


@dataclass(frozen=True)
class Shape:
    """The dimensions of a tiny checkpoint; rows of 256 so that K-quants apply."""

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


def make_checkpoint(
    directory: Path,
    *,
    layout: str = "original",
    dtype: str = "bf16",
    n_shards: int = 1,
    pairs: bool = False,
    shape: Shape = Shape(),
    seed: int = 0,
    tower: str = "inside",
    edit_tensors: Callable[[dict[str, Any]], None] | None = None,
    edit_config: Callable[[dict[str, Any]], None] | None = None,
    edit_tokenizer: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write a checkpoint and return its directory.

    Args:
        directory: created.
        layout: `original`, `transformers_old` or `transformers_new`.
        dtype: `bf16`, `f16` or `f32`; the values are the same, since all are rounded to bfloat16's 8 bits and a
            range that float16 holds.
        n_shards: 1 is model.safetensors, more is an index.
        pairs: merges as pairs instead of strings.
        tower: `inside` the shards, or left out (`absent`).
    """
    directory.mkdir(parents=True)
    config = original_config(shape) if layout == "original" else transformers_config(shape)
    tensors = {rename(name, layout): array.astype(DTYPES[dtype]) for name, array in tensor_values(shape, seed).items()}
    if tower == "absent":
        tensors = {name: array for name, array in tensors.items() if "vision_tower" not in name}
    tensors[rename("vision.embeddings.position_ids", layout)] = np.arange(5, dtype=np.int64)[None]
    tokenizer = tokenizer_json(pairs=pairs)
    for edit, value in ((edit_tensors, tensors), (edit_config, config), (edit_tokenizer, tokenizer)):
        if edit is not None:
            edit(value)
    _write_shards(directory, tensors, n_shards)
    write_json(directory / "config.json", config)
    write_json(directory / "tokenizer.json", tokenizer)
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    if layout == "original":
        (directory / "vision_tower").mkdir()
        write_json(
            directory / "vision_tower" / "config.json", {"model_type": "clip_vision_model", **vision_config(shape)}
        )
    return directory


def tensor_values(shape: Shape, seed: int) -> dict[str, Any]:
    """Return random weights under canonical names, as float32 values that bfloat16 and float16 hold exactly."""
    rng = np.random.default_rng(seed)
    head_dim = shape.head_dim or shape.n_embd // shape.n_head
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.n_vocab, shape.n_embd)}
    for layer in range(shape.n_layer):
        block = f"model.layers.{layer}."
        sizes |= {
            block + "input_layernorm.weight": (shape.n_embd,),
            block + "self_attn.q_proj.weight": (shape.n_head * head_dim, shape.n_embd),
            block + "self_attn.k_proj.weight": (shape.n_head_kv * head_dim, shape.n_embd),
            block + "self_attn.v_proj.weight": (shape.n_head_kv * head_dim, shape.n_embd),
            block + "self_attn.o_proj.weight": (shape.n_embd, shape.n_head * head_dim),
            block + "post_attention_layernorm.weight": (shape.n_embd,),
            block + "mlp.gate_proj.weight": (shape.n_ff, shape.n_embd),
            block + "mlp.up_proj.weight": (shape.n_ff, shape.n_embd),
            block + "mlp.down_proj.weight": (shape.n_embd, shape.n_ff),
        }
    sizes["model.norm.weight"] = (shape.n_embd,)
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.n_vocab, shape.n_embd)
    sizes |= _tower_sizes(shape)
    for index, (rows, columns) in {0: (shape.n_embd, shape.vision_embd), 2: (shape.n_embd, shape.n_embd)}.items():
        sizes |= {f"projector.{index}.weight": (rows, columns), f"projector.{index}.bias": (rows,)}
    return {name: _values(rng, name, size) for name, size in sizes.items()}


def _tower_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    n_embd, n_ff = shape.vision_embd, shape.vision_ff
    sizes: dict[str, tuple[int, ...]] = {
        "vision.embeddings.class_embedding": (n_embd,),
        "vision.embeddings.patch_embedding.weight": (n_embd, 3, shape.patch_px, shape.patch_px),
        "vision.embeddings.position_embedding.weight": ((shape.image_px // shape.patch_px) ** 2 + 1, n_embd),
    }
    layers: dict[str, tuple[int, int] | tuple[int]] = {"pre_layrnorm": (n_embd,), "post_layernorm": (n_embd,)}
    for index in range(shape.vision_layers):
        block = f"encoder.layers.{index}."
        layers |= {f"{block}self_attn.{part}": (n_embd, n_embd) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        layers |= {block + "layer_norm1": (n_embd,), block + "layer_norm2": (n_embd,)}
        layers |= {block + "mlp.fc1": (n_ff, n_embd), block + "mlp.fc2": (n_embd, n_ff)}
    for name, size in layers.items():
        sizes |= {f"vision.{name}.weight": size, f"vision.{name}.bias": size[:1]}
    return sizes


def _values(rng: np.random.Generator, name: str, size: tuple[int, ...]) -> Any:
    if "norm" in name and name.endswith("weight"):
        values = 1 + 0.1 * rng.standard_normal(size)
    elif "embed" in name:
        values = rng.standard_normal(size) * 0.5
    else:
        values = rng.standard_normal(size) / np.sqrt(np.prod(size[1:]) if len(size) > 1 else 16)
    # float16 holds what bfloat16 holds above 2^-14 or so
    exact = values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.where(np.abs(exact) < 2**-13, 0, exact).astype(np.float32)


def rename(name: str, layout: str) -> str:
    """Return a canonical tensor name as this layout spells it."""
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


def tokenizer_json(*, pairs: bool = False) -> dict[str, Any]:
    """Return a byte-level BPE in Llama 3's form: 256 bytes, a few merges, the special tokens."""
    words = [*byte_alphabet(), *("".join(pair) for pair in MERGES)]
    vocab = {text: index for index, text in enumerate(words)}
    added = [
        {"id": len(words) + index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, text in enumerate(SPECIALS)
    ]  # fmt: skip
    template = [{"SpecialToken": {"id": SPECIALS[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SPECIALS[0]: {"id": SPECIALS[0], "ids": [len(words)], "tokens": [SPECIALS[0]]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [list(pair) if pairs else " ".join(pair) for pair in MERGES],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>", "special": True},
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    write_json(path, value)


def _write_shards(directory: Path, tensors: dict[str, Any], n_shards: int) -> None:
    if n_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for index in range(n_shards):
        shard = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::n_shards]}
        save_file(part, directory / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    total = sum(array.nbytes for array in tensors.values())
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
