"""The model in torch: transformers' CLIP tower and Llama decoder, LLaVA's projector, and how they are joined."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

FEATURE_LAYER = -2
N_IMAGE_TOKENS = 64
ROPE: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
ROPE_THETA = 500000.0
VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 192,
    "image_size": 112,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 3,
    "num_channels": 3,
    "num_hidden_layers": 6,
    "patch_size": 14,
    "projection_dim": 192,
}
TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def build_tower() -> CLIPVisionModel:
    """Return a CLIP vision tower with initial weights.

    CLIP starts position embeddings at 0.02, a twentieth of the scale of its patch embedding. In a few hundred steps the
    tower would not learn positions, so they start at the scale of the patches.
    """
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    for name, weight in tower.named_parameters():
        if name.endswith("position_embedding.weight"):
            nn.init.normal_(weight, std=0.3)
    return tower


def image_features(tower: CLIPVisionModel, pixel_values: Tensor) -> Tensor:
    """Return LLaVA's features of the tower: hidden_states[-2] without CLS, no post-layernorm.

    Args:
        pixel_values: float32 (n, 3, 112, 112).

    Returns:
        float32 (n, 64, 192), patches row by row.
    """
    return tower(pixel_values, output_hidden_states=True).hidden_states[FEATURE_LAYER][:, 1:]


class LabelHeads(nn.Module):
    """Reads the findings off the tower, to train it; not part of the model.

    For each of nodule (none or side and zone: 7), effusion (none or side: 3) and heart (2), every patch of the feature
    layer votes for every class, and the votes are pooled by log-sum-exp, so that one patch that sees a nodule is
    enough. A second reading, of the last layer's CLS, trains the last block as well. A third says at which patch the
    nodule lies: without it the tower takes thousands of steps to notice small things.
    """

    CLASSES = (7, 3, 2)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.votes = nn.Linear(width, sum(self.CLASSES))
        self.reading = nn.Linear(width, sum(self.CLASSES))
        self.place = nn.Linear(width, 1)

    def forward(self, patches: Tensor, pooled_cls: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return logits of the three labels from (n, 64, width) patches and from the (n, width) CLS, and of the place.

        The place is one of 65: a patch, or 64 for none.
        """
        patches = self.norm(patches)
        by_patch = self.votes(patches).float().logsumexp(1)
        by_cls = self.reading(pooled_cls).float()
        place = functional.pad(self.place(patches)[:, :, 0].float(), (0, 1))
        return list(by_patch.split(self.CLASSES, 1)), list(by_cls.split(self.CLASSES, 1)), place


class Llava(nn.Module):
    """Projector and decoder; takes tower features, because the tower is frozen while these are trained."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        rope = {**ROPE, "rope_theta": ROPE_THETA}
        config = LlamaConfig(vocab_size=vocab_size, rope_parameters=rope, pad_token_id=None, **TEXT)
        self.decoder = LlamaForCausalLM(config)
        width = int(TEXT["hidden_size"])
        self.projector = nn.Sequential(nn.Linear(int(VISION["hidden_size"]), width), nn.GELU(), nn.Linear(width, width))

    def forward(self, ids: Tensor, features: Tensor, keep: Tensor) -> Tensor:
        """Return next-token logits at chosen positions.

        Args:
            ids: int64 (n, length): token ids; -1 where an image embedding goes; padding on the right.
            features: float32 (m, 64, 192), the images in the order of their places in `ids`.
            keep: bool (n, length), where logits are wanted.

        Returns:
            float32 (keep.sum(), vocab_size).
        """
        embeds = self.decoder.model.embed_tokens(ids.clamp(min=0))
        if len(features):
            embeds = embeds.masked_scatter((ids < 0)[:, :, None], self.projector(features).to(embeds.dtype))
        # Causal attention with padding on the right needs no mask: nothing real comes after a pad.
        hidden = self.decoder.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return self.decoder.lm_head(hidden[keep])
