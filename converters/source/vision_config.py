"""The configuration of a CLIP vision tower and of the preprocessing it was trained with.

Source: transformers `CLIPVisionConfig` and `CLIPImageProcessor`; LLaVA `mm_utils.py` for the padding colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bimedix_edge.converters.source.strict_json import Fields, read_json
from bimedix_edge.errors import CheckpointError
from bimedix_edge.imaging.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing

__all__ = ["KNOWN_TOWER", "VisionConfig", "named_tower", "read_tower", "vision_fields"]

MAX_CONFIG_BYTES = 1 << 20
KNOWN_TOWER = "openai/clip-vit-large-patch14-336"
_BICUBIC = 3  # PIL's number
_PREPROCESSOR = "preprocessor_config.json"
_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class VisionConfig:
    """The shape of a CLIP tower and the preprocessing it was trained with."""

    n_layer: int
    n_embd: int
    n_head: int
    n_ff: int
    patch_px: int
    layer_norm_eps: float
    activation: Literal["quick_gelu", "gelu"]
    preprocessing: Preprocessing

    @property
    def n_patches(self) -> int:
        """Return the number of image tokens: the patches, without CLS."""
        return (self.preprocessing.image_size_px // self.patch_px) ** 2


def read_tower(directory: Path) -> VisionConfig:
    """Read the config.json and preprocessor_config.json of a CLIP checkpoint, or of a `CLIPVisionModel` alone.

    Raises:
        CheckpointError: A file is missing or damaged, or the tower is not CLIP's.
    """
    fields = read_json(directory / "config.json", MAX_CONFIG_BYTES)
    if fields.choice("model_type", ("clip_vision_model", "clip")) == "clip":
        fields = fields.child("vision_config")
    return vision_fields(fields, directory)


def named_tower(name: str, directory: Path) -> VisionConfig:
    """Return the tower that `mm_vision_tower` names by a directory inside the checkpoint.

    Args:
        name: Value of the field.
        directory: The checkpoint.

    Raises:
        CheckpointError: It does not name such a directory.
    """
    if name and name not in (".", "..") and not set(name) & set("/\\:\0") and (directory / name).is_dir():
        return read_tower(directory / name)
    raise CheckpointError(
        f"mm_vision_tower in config.json is {name[:120]!r}, which is neither {KNOWN_TOWER} nor a directory inside the "
        "checkpoint. Name the directory of that CLIP tower yourself."
    )


def vision_fields(fields: Fields | None, directory: Path) -> VisionConfig:
    """Read a CLIPVisionConfig, with its class's defaults for missing fields.

    Args:
        fields: The parsed object; None for CLIP ViT-L/14-336, which checkpoints name without describing it.
        directory: Where preprocessor_config.json may be.

    Raises:
        CheckpointError: The configuration is damaged or not that of a CLIP tower.
    """
    if fields is None:
        return VisionConfig(24, 1024, 16, 4096, 14, 1e-5, "quick_gelu", _preprocessing(336, directory))
    fields.choice("num_channels", (3,), 3)
    n_embd = fields.integer("hidden_size", 768, high=1 << 16)
    n_head = fields.integer("num_attention_heads", 12, high=1 << 12)
    image_px = fields.integer("image_size", 224, high=1 << 12)
    patch_px = fields.integer("patch_size", 32, high=1 << 12)
    if n_embd % n_head or image_px < patch_px:
        raise CheckpointError(
            f"{fields.where} contradicts itself: hidden_size {n_embd} is not a multiple of {n_head} heads, or "
            f"image_size {image_px} is less than patch_size {patch_px}. Download the checkpoint again."
        )
    return VisionConfig(
        n_layer=fields.integer("num_hidden_layers", 12, high=1 << 10),
        n_embd=n_embd,
        n_head=n_head,
        n_ff=fields.integer("intermediate_size", 3072, high=1 << 18),
        patch_px=patch_px,
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5, high=1.0),
        activation=_activation(fields),
        preprocessing=_preprocessing(image_px, directory),
    )


def _activation(fields: Fields) -> Literal["quick_gelu", "gelu"]:
    name = fields.choice("hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
    return "quick_gelu" if name == "quick_gelu" else "gelu"


def _preprocessing(image_px: int, directory: Path) -> Preprocessing:
    """Read preprocessor_config.json where there is one; CLIP's constants otherwise."""
    if not (directory / _PREPROCESSOR).exists():
        return Preprocessing(image_size_px=image_px)
    fields = read_json(directory / _PREPROCESSOR, MAX_CONFIG_BYTES)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        fields.choice(step, (True,), True)
    fields.choice("resample", (_BICUBIC,), _BICUBIC)
    if abs((factor := fields.number("rescale_factor", 1 / 255)) - 1 / 255) > 1e-9:
        raise CheckpointError(
            f"rescale_factor in {fields.where} is {factor:g}, which this converter does not support. It supports 1/255."
        )
    _check_side(fields, "size", "shortest_edge", image_px)
    _check_side(fields, "crop_size", "height", image_px)
    mean, std = _triple(fields, "image_mean", CLIP_MEAN), _triple(fields, "image_std", CLIP_STD)
    # LLaVA pads with the mean, rounded down: (122, 116, 104) for CLIP's
    red, green, blue = (int(value * 255) for value in mean)
    return Preprocessing(image_size_px=image_px, pad_rgb=(red, green, blue), mean=mean, std=std)


def _check_side(fields: Fields, name: str, edge: str, image_px: int) -> None:
    """Check that the preprocessor's image is as large as the tower's; old files have a number, new ones an object."""
    if name not in fields:
        return
    given = fields.child(name).raw(edge) if isinstance(fields.raw(name), dict) else fields.raw(name)
    if given not in (None, image_px):
        raise CheckpointError(
            f"{name} in {fields.where} is {str(given)[:40]}, but the tower's image_size is {image_px}. "
            "Download the checkpoint again."
        )


def _triple(fields: Fields, name: str, default: _Triple) -> _Triple:
    values = fields.items(name) if name in fields else list(default)
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and 0 < value <= 1]
    if len(values) != len(numbers) or len(numbers) != 3:
        raise CheckpointError(
            f"{name} in {fields.where} is {str(values)[:60]}, not three numbers above 0 and at most 1. "
            "Download the checkpoint again."
        )
    return (numbers[0], numbers[1], numbers[2])
