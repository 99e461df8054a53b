"""Writes the trained model in BiMediX2's published layout: two bfloat16 shards with LLaVA's names, and the configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPVisionModel

from .model import ROPE, ROPE_THETA, TEXT, VISION, Llava
from .pictures import IMAGE_SIZE, MEAN, STD
from .vocabulary import PAD, save_tokenizer

_FORMAT = "4.43.1"  # the transformers release whose config layout this is (llama3 rope scaling as `rope_scaling`)
_SHARD = "model-{:05d}-of-00002.safetensors"


def round_to_bfloat16(*modules: nn.Module) -> None:
    """Round every weight in place to bfloat16, the type of the checkpoint."""
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                weight.copy_(weight.to(torch.bfloat16).to(weight.dtype))


def llava_tensors(tower: CLIPVisionModel, llava: Llava) -> dict[str, Tensor]:
    """Return every weight under its name in an original LLaVA checkpoint, bfloat16."""
    named: dict[str, Tensor] = dict(llava.decoder.state_dict())
    for name, weight in tower.state_dict().items():
        named[f"model.vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}"] = weight
    for name, weight in llava.projector.state_dict().items():
        named[f"model.mm_projector.{name}"] = weight
    return {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in named.items()
        if not name.endswith("position_ids")
    }


def write_checkpoint(directory: Path, tower: CLIPVisionModel, llava: Llava, tokenizer: Tokenizer) -> int:
    """Write the whole checkpoint.

    Returns:
        The size of everything in the directory, in bytes.
    """
    vision = directory / "vision_tower"
    vision.mkdir(parents=True, exist_ok=True)
    _write_shards(directory, llava_tensors(tower, llava))
    save_tokenizer(tokenizer, directory)
    ids = {role: tokenizer.token_to_id(token) for role, token in _ROLES.items()}
    _write_json(directory / "config.json", _config(tokenizer.get_vocab_size(), ids))
    _write_json(directory / "generation_config.json", _generation(ids))
    _write_json(vision / "config.json", _vision_config())
    _write_json(vision / "preprocessor_config.json", _preprocessor())
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


_ROLES = {"bos_token_id": "<|begin_of_text|>", "eos_token_id": "<|eot_id|>", "pad_token_id": PAD}


def _write_shards(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Write two shards of about equal size, and the index."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    written = 0
    for name, tensor in tensors.items():
        shards[written >= total / 2][name] = tensor
        written += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        save_file(shard, directory / _SHARD.format(number), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, _SHARD.format(number))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / "model.safetensors.index.json", index)


def _config(vocab_size: int, ids: dict[str, int]) -> dict[str, Any]:
    """Return LlamaConfig's fields and LLaVA's, as LLaVA's trainer writes them."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        **TEXT,
        **ids,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": VISION["hidden_size"],
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "vision_tower",
        "model_type": "llava_llama",
        "pretraining_tp": 1,
        "rope_scaling": ROPE,
        "rope_theta": ROPE_THETA,
        "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": _FORMAT,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": vocab_size,
    }


def _generation(ids: dict[str, int]) -> dict[str, Any]:
    return {**ids, "do_sample": True, "temperature": 0.1, "top_p": 1.0, "transformers_version": _FORMAT}


def _vision_config() -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        **VISION,
        "dropout": 0.0,
        "model_type": "clip_vision_model",
        "torch_dtype": "bfloat16",
        "transformers_version": _FORMAT,
    }


def _preprocessor() -> dict[str, Any]:
    """Return CLIPImageProcessor's values for clip-vit-large-patch14-336, at this tower's size."""
    return {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
