"""The three layouts in which published checkpoints name their tensors, mapped to one.

| part      | original (LLaVA)                          | transformers, old                | transformers, new      |
|-----------|-------------------------------------------|----------------------------------|------------------------|
| decoder   | `model.layers.N`, `lm_head`               | `language_model.model`           | `model.language_model` |
| tower     | `model.vision_tower.vision_tower.vision…` | `vision_tower.vision_model`      | same after `model.`    |
| projector | `model.mm_projector.{0,2}`                | `multi_modal_projector.linear_1` | same after `model.`    |

The canonical names are the decoder's original ones, `vision.*` and `projector.{0,2}.*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["LAYOUTS", "TOWER_PREFIXES", "canonical_name", "detect_layout", "is_buffer"]

# prefix in the file -> canonical prefix; the first match counts
_PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "original": (
        ("model.vision_tower.vision_tower.vision_model.", "vision."),
        ("model.mm_projector.", "projector."),
        ("model.", "model."),
        ("lm_head.", "lm_head."),
    ),
    "transformers_old": (
        ("vision_tower.vision_model.", "vision."),
        ("multi_modal_projector.linear_1.", "projector.0."),
        ("multi_modal_projector.linear_2.", "projector.2."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    "transformers_new": (
        ("model.vision_tower.vision_model.", "vision."),
        ("model.vision_tower.", "vision."),
        ("model.multi_modal_projector.linear_1.", "projector.0."),
        ("model.multi_modal_projector.linear_2.", "projector.2."),
        ("model.language_model.", "model."),
        ("lm_head.", "lm_head."),
    ),
}
LAYOUTS = tuple(_PREFIXES)

# a CLIP checkpoint by itself: only the tower is used, its text half is not part of BiMediX2
TOWER_PREFIXES = (("vision_model.", "vision."),)
_CLIP_TEXT_HALF = re.compile(r"text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale")

# computed from the configuration, saved by some versions of transformers
_BUFFER = re.compile(r".*\.position_ids|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def detect_layout(names: Iterable[str]) -> str | None:
    """Return the layout that the names of the decoder's tensors follow, one of `LAYOUTS`; None for no or several."""
    found = set()
    for name in names:
        if name.startswith("language_model.model."):
            found.add("transformers_old")
        elif name.startswith("model.language_model."):
            found.add("transformers_new")
        elif name.startswith(("model.layers.", "model.embed_tokens.")):
            found.add("original")
    return found.pop() if len(found) == 1 else None


def canonical_name(name: str, layout: str) -> str | None:
    """Return a tensor's canonical name, or None if the layout has no such name.

    Args:
        name: Name in the file.
        layout: One of `LAYOUTS`, or `tower` for a CLIP checkpoint by itself.
    """
    for prefix, canonical in TOWER_PREFIXES if layout == "tower" else _PREFIXES[layout]:
        if name.startswith(prefix):
            return canonical + name[len(prefix) :]
    return None


def is_buffer(name: str, layout: str) -> bool:
    """Return whether a tensor has no trained values, or belongs to the text half of a CLIP checkpoint."""
    if layout == "tower" and _CLIP_TEXT_HALF.fullmatch(name):
        return True
    return _BUFFER.fullmatch(canonical_name(name, layout) or name) is not None
