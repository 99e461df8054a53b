"""The reference: transformers' LlavaForConditionalGeneration and CLIPImageProcessor, float32, from the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from golden.prompts import Prompt, llava_ids, llava_string

MAX_TOKENS = 64
# as in the published -hf siblings: the image token is the first id after the vocabulary, which is padded to hold it
_PADDING_ROWS = 64


class Reference:
    """The demo checkpoint in transformers.

    Args:
        checkpoint: A directory in LLaVA's original layout.
    """

    def __init__(self, checkpoint: Path) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        vision = json.loads((checkpoint / config["mm_vision_tower"] / "config.json").read_text())
        self.n_vocab: int = config["vocab_size"]
        self.image_id = self.n_vocab
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.end = self.tokenizer.token_to_id("<|eot_id|>")
        self.n_image_tokens = (vision["image_size"] // vision["patch_size"]) ** 2
        self.image_size = vision["image_size"]
        self.model = LlavaForConditionalGeneration(self._config(config, vision)).eval()
        self.model.load_state_dict(_renamed(_tensors(checkpoint), set(self.model.state_dict())), strict=True)

    def _config(self, config: dict[str, Any], vision: dict[str, Any]) -> LlavaConfig:
        dropped = {"architectures", "model_type", "transformers_version", "torch_dtype", "dtype"}
        text = {key: value for key, value in config.items() if not key.startswith("mm_") and key not in dropped}
        text["vocab_size"] = self.n_vocab + _PADDING_ROWS
        return LlavaConfig(
            vision_config=CLIPVisionConfig(**{key: value for key, value in vision.items() if key not in dropped}),
            text_config=LlamaConfig(**text),
            image_token_index=self.image_id,
            vision_feature_layer=config["mm_vision_select_layer"],
            vision_feature_select_strategy="default",
            projector_hidden_act="gelu",
        )

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the prompt's ids, with `image_id` at image positions."""
        return llava_ids(llava_string(prompt.messages), self.tokenizer, self.image_id, self.n_image_tokens)

    @torch.inference_mode()
    def answer(self, prompt: Prompt) -> tuple[list[int], NDArray[np.float32]]:
        """Return the greedy answer's ids without the end token, and the logits (n_vocab,) of its first token."""
        ids = self.ids(prompt)
        pixels = None
        if prompt.pictures:
            pixels = torch.from_numpy(np.concatenate([self.pixel_values(picture) for picture in prompt.pictures]))
        output = self.model(input_ids=torch.tensor([ids]), pixel_values=pixels, use_cache=True)
        first: NDArray[np.float32] = output.logits[0, -1, : self.n_vocab].numpy()
        answer: list[int] = []
        while len(answer) < MAX_TOKENS:
            token = int(output.logits[0, -1, : self.n_vocab].argmax())
            if token == self.end:
                break
            answer.append(token)
            output = self.model(
                input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )
        return answer, first

    @torch.inference_mode()
    def embeds(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return tower and projector's output for float32 (1, 3, size, size) as float32 (n_image_tokens, n_embd)."""
        features = self.model.get_image_features(pixel_values=torch.from_numpy(pixel_values))
        features = getattr(features, "pooler_output", features)
        result: NDArray[np.float32] = features[0].numpy()
        return result

    def pixel_values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return LLaVA's preprocessing: expand2square with numpy, then transformers' CLIPImageProcessor."""
        return clip_pixel_values(pixels, self.image_size)


def clip_pixel_values(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Pad as LLaVA's expand2square, then process as transformers' CLIPImageProcessor; float32 (1, 3, size, size)."""
    from transformers import CLIPImageProcessorPil

    image = Image.fromarray(pixels).convert("RGB")
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_convert_rgb=True
    )
    background = tuple(int(mean * 255) for mean in processor.image_mean)
    width, height = image.size
    if width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), background)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    values: NDArray[np.float32] = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    return values


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors |= load_file(checkpoint / shard)
    return {name: tensor.float() for name, tensor in tensors.items()}


def _renamed(tensors: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Return the tensors under transformers' names; the vocabulary padded with zero rows."""
    old_tower = "model.vision_tower.vision_tower.vision_model."
    tower = "model.vision_tower."
    if any(name.startswith("model.vision_tower.vision_model.") for name in wanted):
        tower += "vision_model."
    result = {}
    for name, tensor in tensors.items():
        if name.startswith(old_tower):
            new = tower + name.removeprefix(old_tower)
        elif name.startswith("model.mm_projector."):
            layer, kind = name.removeprefix("model.mm_projector.").split(".")
            new = f"model.multi_modal_projector.linear_{1 + int(layer) // 2}.{kind}"
        else:
            new = name if name.startswith("lm_head") else f"model.language_model.{name.removeprefix('model.')}"
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            result[new] = torch.cat([tensor, torch.zeros(_PADDING_ROWS, tensor.shape[1])])
        else:
            result[new] = tensor
    return {name: tensor for name, tensor in result.items() if name in wanted or "post_layernorm" not in name}
