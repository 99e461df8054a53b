"""CLIP's vision tower up to the feature layer, and the projector, as one ONNX graph; built without torch.

    pixel_values (1, 3, S, S)
      -> patches (N, C), class token first, positions, pre-norm        T = N + 1 tokens
      -> n_blocks of attention and MLP                                 (T, C)
      -> without the class token                                       (N, C)
      -> linear, exact GELU, linear                                    (N, E)
    image_embeds (1, N, E)

Inside, activations have no batch axis: with two dimensions ONNX Runtime turns each MatMul and Add into one Gemm.
Opset 17 is the first with LayerNormalization, and every ONNX Runtime since 1.12 reads it; GELU is written with Erf,
which ONNX Runtime recognises and fuses.

Source: transformers `CLIPVisionTransformer` (hidden_states[-2] comes before the post-norm) and
`LlavaMultiModalProjector`; OpenAI CLIP `model.py` for quick_gelu.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.checkpoint import Checkpoint
from bimedix_edge.converters.onnx_file import Graph, model_bytes, model_parts
from bimedix_edge.converters.parts import Part
from bimedix_edge.converters.vision_weights import VisionWeights, product

__all__ = ["OPSET", "build_vision", "vision_bytes", "vision_parts"]

OPSET = 17


def vision_parts(
    checkpoint: Checkpoint,
    graph: Graph,
    *,
    producer: str,
    metadata: dict[str, str],
    weights: VisionWeights = "float32",
) -> list[Part]:
    """Check the graph and return its file as parts, weights inside.

    Args:
        checkpoint: where the weights are.
        graph: from `build_vision`.
        producer: what made the file.
        metadata: properties of the model.
        weights: what the graph was built with.

    Returns:
        Parts whose steps raise CheckpointError if a weight is NaN or infinite.

    Raises:
        CheckpointError: the tower does not fit into one file.
    """
    vision, n_embd = checkpoint.config.vision, checkpoint.config.decoder.n_embd
    size = vision.preprocessing.image_size_px
    return model_parts(
        graph,
        name="vision",
        opset=OPSET,
        input_shape=("pixel_values", (1, 3, size, size)),
        output_shape=("image_embeds", (1, vision.n_patches, n_embd)),
        producer=producer,
        metadata={**metadata, "n_blocks": str(checkpoint.config.n_blocks), "weights": weights},
    )


def vision_bytes(graph: Graph) -> int:
    """Return about how large the file becomes."""
    return model_bytes(graph)


def build_vision(checkpoint: Checkpoint, weights: VisionWeights = "float32") -> Graph:
    """Return the graph of a checkpoint's tower and projector; its weights are read when it is written.

    Args:
        checkpoint: the source.
        weights: how matrices are stored and multiplied; the patches' convolution is always float32.
    """
    tower = _Tower(checkpoint, weights)
    hidden = tower.embeddings()
    for index in range(checkpoint.config.n_blocks):
        hidden = tower.block(index, hidden)
    tower.projector(hidden)
    return tower.graph


class _Tower:
    """The parts of the graph, in the order in which the data flows."""

    def __init__(self, checkpoint: Checkpoint, weights: VisionWeights) -> None:
        self.graph = Graph()
        self.weights = weights
        self.checkpoint = checkpoint
        self.config = checkpoint.config.vision

    def embeddings(self) -> str:
        """Patches, class token and positions, normalised: (T, C)."""
        graph, config = self.graph, self.config
        n_embd, n_patches, patch = config.n_embd, config.n_patches, config.patch_px
        kernel = self._weight("vision.embeddings.patch_embedding.weight")
        patches = graph.add(
            "Conv", "patches.grid", ["pixel_values", kernel], kernel_shape=[patch, patch], strides=[patch, patch]
        )
        flat = graph.add("Reshape", "patches.flat", [patches, graph.integers("shape.patches", (n_embd, n_patches))])
        rows = graph.add("Transpose", "patches.rows", [flat], perm=[1, 0])
        positions = graph.weight("vision.positions.patches", (n_patches, n_embd), self._patch_positions)
        placed = graph.add("Add", "patches", [rows, positions])
        # the class token is the same for every image, so its position is added to it here and now
        first = graph.weight("vision.class_token", (1, n_embd), self._class_token)
        tokens = graph.add("Concat", "tokens", [first, placed], axis=0)
        return self._norm("vision.pre_layrnorm", tokens)

    def block(self, index: int, hidden: str) -> str:
        """One transformer block: (T, C) to (T, C)."""
        prefix = f"vision.encoder.layers.{index}."
        attended = self._attention(prefix + "self_attn.", self._norm(prefix + "layer_norm1", hidden))
        hidden = self.graph.add("Add", prefix + "attended", [hidden, attended])
        inner = self._linear(prefix + "mlp.fc1", self._norm(prefix + "layer_norm2", hidden))
        activate = self._quick_gelu if self.config.activation == "quick_gelu" else self._gelu
        outer = self._linear(prefix + "mlp.fc2", activate(prefix + "mlp.activation", inner))
        return self.graph.add("Add", prefix + "out", [hidden, outer])

    def projector(self, hidden: str) -> str:
        """Drop the class token and project: (T, C) to (1, N, E)."""
        graph = self.graph
        n_tokens, n_embd = self.config.n_patches + 1, self.checkpoint.config.decoder.n_embd
        ends = [graph.integers("slice.start", (1,)), graph.integers("slice.stop", (n_tokens,))]
        features = graph.add("Slice", "features", [hidden, *ends, graph.integers("slice.axis", (0,))])
        inner = self._gelu("projector.activation", self._linear("projector.0", features))
        outer = self._linear("projector.2", inner)
        shape = graph.integers("shape.image_embeds", (1, n_tokens - 1, n_embd))
        return graph.add("Reshape", "image_embeds", [outer, shape])

    def _attention(self, prefix: str, hidden: str) -> str:
        """Attention of every token to every token, all heads at once: (T, C) to (T, C)."""
        graph, n_embd, n_head = self.graph, self.config.n_embd, self.config.n_head
        n_tokens, head_dim = self.config.n_patches + 1, n_embd // n_head
        bias = graph.weight(prefix + "qkv.bias", (3 * n_embd,), partial(self._qkv, prefix, "bias"))
        shape, read = (n_embd, 3 * n_embd), partial(self._qkv, prefix, "weight")
        multiplied = product(graph, self.weights, prefix + "qkv.product", hidden, prefix + "qkv.weight", shape, read)
        joined = graph.add("Add", prefix + "qkv", [multiplied, bias])
        split_shape = graph.integers("shape.heads", (n_tokens, 3, n_head, head_dim))
        heads = graph.add("Reshape", prefix + "heads", [joined, split_shape])
        by_part = graph.add("Transpose", prefix + "parts", [heads], perm=[1, 2, 0, 3])
        query = graph.add("Split", prefix + "split", [by_part], n_outputs=3, axis=0)
        key, value = f"{query}.1", f"{query}.2"
        turned = graph.add("Transpose", prefix + "key_turned", [key], perm=[0, 1, 3, 2])
        scores = graph.add("MatMul", prefix + "scores", [query, turned])
        shares = graph.add("Softmax", prefix + "shares", [scores], axis=-1)
        context = graph.add("MatMul", prefix + "context", [shares, value])
        by_token = graph.add("Transpose", prefix + "by_token", [context], perm=[0, 2, 1, 3])
        merged = graph.add("Reshape", prefix + "merged", [by_token, graph.integers("shape.merged", (n_tokens, n_embd))])
        return self._linear(prefix + "out_proj", merged)

    def _qkv(self, prefix: str, part: str) -> NDArray[np.float32]:
        """Q, K and V side by side, with the scale of the scores, head_dim ** -0.5, in Q."""
        query, key, value = (self._read(f"{prefix}{name}_proj.{part}") for name in "qkv")
        scale = np.float32((self.config.n_embd // self.config.n_head) ** -0.5)
        joined: NDArray[np.float32] = np.concatenate([query * scale, key, value])
        turned: NDArray[np.float32] = joined.T
        return turned

    def _norm(self, name: str, hidden: str) -> str:
        weights = [self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self.graph.add("LayerNormalization", name, [hidden, *weights], epsilon=self.config.layer_norm_eps)

    def _linear(self, name: str, hidden: str) -> str:
        """x · wᵀ + b; the weight is stored turned, as ONNX Runtime wants it for Gemm."""
        rows, columns = self.checkpoint.shape(f"{name}.weight")
        weight, shape = f"{name}.weight", (columns, rows)

        def read() -> NDArray[np.float32]:
            turned: NDArray[np.float32] = self._read(weight).T
            return turned

        multiplied = product(self.graph, self.weights, f"{name}.product", hidden, weight, shape, read)
        return self.graph.add("Add", name, [multiplied, self._weight(f"{name}.bias")])

    def _quick_gelu(self, name: str, hidden: str) -> str:
        """x · sigmoid(1.702 x), what CLIP was trained with."""
        scaled = self.graph.add("Mul", f"{name}.scaled", [hidden, self._scalar("quick_gelu.scale", 1.702)])
        gate = self.graph.add("Sigmoid", f"{name}.gate", [scaled])
        return self.graph.add("Mul", name, [hidden, gate])

    def _gelu(self, name: str, hidden: str) -> str:
        """x / 2 · (1 + erf(x / √2)), the exact form that the projector was trained with."""
        scaled = self.graph.add("Div", f"{name}.scaled", [hidden, self._scalar("gelu.root_two", 2**0.5)])
        erf = self.graph.add("Erf", f"{name}.erf", [scaled])
        gate = self.graph.add("Add", f"{name}.gate", [erf, self._scalar("gelu.one", 1.0)])
        product = self.graph.add("Mul", f"{name}.product", [hidden, gate])
        return self.graph.add("Mul", name, [product, self._scalar("gelu.half", 0.5)])

    def _scalar(self, name: str, value: float) -> str:
        return self.graph.weight(name, (), lambda: np.array(value, np.float32))

    def _weight(self, name: str) -> str:
        return self.graph.weight(name, self.checkpoint.shape(name), partial(self._read, name))

    def _read(self, name: str) -> NDArray[np.float32]:
        return self.checkpoint.rows(name, slice(None))

    def _patch_positions(self) -> NDArray[np.float32]:
        return self.checkpoint.rows("vision.embeddings.position_embedding.weight", slice(1, None))

    def _class_token(self) -> NDArray[np.float32]:
        position = self.checkpoint.rows("vision.embeddings.position_embedding.weight", slice(0, 1))
        return position + self._read("vision.embeddings.class_embedding")
