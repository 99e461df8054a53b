"""CLIP's vision tower up to the feature layer, and the projector, as one ONNX graph; built without torch.

    pixel_values (1, 3, S, S)
      -> patches (N, C), class token first, positions, pre-norm        T = N + 1 tokens
      -> n_blocks of attention and MLP                                 (T, C)
      -> without the class token                                       (N, C)
      -> linear, exact GELU, linear                                    (N, E)
    image_embeds (1, N, E)

Inside, activations have no batch axis: with two dimensions ONNX Runtime turns each MatMul and Add into one Gemm.
Opset 17 is the first with LayerNormalization; GELU is written with Erf, which ONNX Runtime recognises and fuses.
Attention is ONNX Runtime's own `MultiHeadAttention`, which goes through keys and values block by block and writes no
scores to memory: 0.16 s of an image on two cores, against 0.20 for MatMul, Softmax, MatMul and the transposes.
With int8 weights, it and the linear layers are functions for which this project has kernels (`functions.py`).

With float16 weights, a block computes in float16 after its norms. Its sum with the residual is float32, so that
rounding does not accumulate from block to block; so are norms and both ends.

Source: transformers `CLIPVisionTransformer` (hidden_states[-2] comes before the post-norm) and
`LlavaMultiModalProjector`; OpenAI CLIP `model.py` for quick_gelu; ONNX Runtime `ContribOperators.md`, version 1.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bimedix_edge.converters.parts import Part
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.vision.functions import (
    ATTENTION,
    DOMAIN,
    LINEAR,
    LINEAR_ADD,
    LINEAR_SILU,
    has_heads,
    is_layer,
    vision_functions,
)
from bimedix_edge.converters.vision.onnx_file import CONTRIB, Graph, ModelDescription, model_bytes, model_parts
from bimedix_edge.converters.vision.weights import Matrix, VisionWeights, float_type, product, rounded_weight

__all__ = ["OPSET", "TowerGraph", "build_vision", "vision_bytes", "vision_parts"]

OPSET = 17
_QUICK_GELU = 1.702


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
        checkpoint: Source of the weights.
        graph: Result of `build_vision`.
        producer: Program that writes the file.
        metadata: Properties of the model.
        weights: Weights that the graph was built with.

    Returns:
        Parts whose steps raise CheckpointError if a weight is NaN or infinite.

    Raises:
        CheckpointError: The tower does not fit into one file.
    """
    vision, n_embd = checkpoint.config.vision, checkpoint.config.decoder.n_embd
    size = vision.preprocessing.image_size_px
    functions = vision_functions(OPSET) if any(node.domain == DOMAIN for node in graph.nodes) else []
    facts = {"n_blocks": str(checkpoint.config.n_blocks), "weights": weights}
    if functions:
        # tells the runtime that its kernels apply
        facts["functions"] = " ".join(sorted(function.name for function in functions))
    about = ModelDescription(
        name="vision",
        opset=OPSET,
        input_shape=("pixel_values", (1, 3, size, size)),
        output_shape=("image_embeds", (1, vision.n_patches, n_embd)),
        producer=producer,
        metadata={**metadata, **facts},
        functions=functions,
    )
    return model_parts(graph, about)


def vision_bytes(graph: Graph) -> int:
    """Return the approximate size of the file."""
    return model_bytes(graph)


def build_vision(checkpoint: Checkpoint, weights: VisionWeights = "float32") -> Graph:
    """Return the graph of a checkpoint's tower and projector; writing it reads the weights.

    Args:
        checkpoint: The source.
        weights: How matrices are stored and multiplied; the convolution of the patches is always float32.
    """
    tower = TowerGraph(checkpoint, weights)
    hidden = tower.embeddings()
    for index in range(checkpoint.config.n_blocks):
        hidden = tower.block(index, hidden)
    tower.projector(hidden)
    return tower.graph


class TowerGraph:
    """Builds the parts of the graph, in the order of the data flow.

    Args:
        checkpoint: The source.
        weights: See `build_vision`.
    """

    def __init__(self, checkpoint: Checkpoint, weights: VisionWeights) -> None:
        self.graph = Graph()
        self.weights = weights
        self._type = float_type(weights)
        self.checkpoint = checkpoint
        self.config = checkpoint.config.vision

    def embeddings(self) -> str:
        """Add patches, class token and positions, normalised: (T, C)."""
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
        # the class token is the same for every image, so its position is added at conversion
        first = graph.weight("vision.class_token", (1, n_embd), self._class_token)
        tokens = graph.add("Concat", "tokens", [first, placed], axis=0)
        return self._norm("vision.pre_layrnorm", tokens)

    def block(self, index: int, hidden: str) -> str:
        """Add one transformer block: (T, C) to (T, C)."""
        prefix = f"vision.encoder.layers.{index}."
        hidden = self._attention(
            prefix + "self_attn.", self._narrow(self._norm(prefix + "layer_norm1", hidden)), residual=hidden
        )
        return self._mlp(prefix + "mlp.", self._narrow(self._norm(prefix + "layer_norm2", hidden)), residual=hidden)

    def projector(self, hidden: str) -> str:
        """Drop the class token and project: (T, C) to (1, N, E)."""
        graph = self.graph
        n_tokens, n_embd = self.config.n_patches + 1, self.checkpoint.config.decoder.n_embd
        ends = [graph.integers("slice.start", (1,)), graph.integers("slice.stop", (n_tokens,))]
        features = graph.add("Slice", "features", [hidden, *ends, graph.integers("slice.axis", (0,))])
        inner = self.gelu("projector.activation", self._linear("projector.0", self._narrow(features)))
        outer = self._wide(self._linear("projector.2", inner))
        shape = graph.integers("shape.image_embeds", (1, n_tokens - 1, n_embd))
        return graph.add("Reshape", "image_embeds", [outer, shape])

    def _attention(self, prefix: str, hidden: str, residual: str) -> str:
        """Add attention of every token to every token, all heads at once, and the residual: (T, C) to (T, C)."""
        graph, (n_tokens, n_embd, n_head) = (
            self.graph,
            (self.config.n_patches + 1, self.config.n_embd, self.config.n_head),
        )
        parts = [self._linear(f"{prefix}{part}_proj", hidden) for part in "qkv"]
        name = prefix + "context"
        if self.weights == "int8" and has_heads(n_embd, n_head):
            merged = graph.add(ATTENTION, name, parts, domain=DOMAIN, num_heads=n_head)
        else:
            shape = graph.integers("shape.batch", (1, n_tokens, n_embd))
            batches = [graph.add("Reshape", f"{part}.batch", [part, shape]) for part in parts]
            context = graph.add("MultiHeadAttention", name, batches, domain=CONTRIB, num_heads=n_head)
            whole = graph.integers("shape.merged", (n_tokens, n_embd))
            merged = graph.add("Reshape", prefix + "merged", [context, whole])
        return self._linear(prefix + "out_proj", merged, residual=residual)

    def _mlp(self, prefix: str, hidden: str, residual: str) -> str:
        """Add the MLP and the residual: (T, C) to (T, C)."""
        if self.config.activation != "quick_gelu":
            inner = self.gelu(prefix + "activation", self._linear(prefix + "fc1", hidden))
            return self._linear(prefix + "fc2", inner, residual=residual)
        # x · sigmoid(1.702 x), what CLIP was trained with, is SiLU of 1.702 x, divided by 1.702. With both factors in
        # the weights around it, one operation remains, which ONNX Runtime computes faster
        inner = self._linear(prefix + "fc1", hidden, factors=(_QUICK_GELU, _QUICK_GELU), silu=True)
        return self._linear(prefix + "fc2", inner, factors=(1 / _QUICK_GELU, 1.0), residual=residual)

    def _norm(self, name: str, hidden: str) -> str:
        weights = [self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self.graph.add("LayerNormalization", name, [hidden, *weights], epsilon=self.config.layer_norm_eps)

    def _linear(
        self,
        name: str,
        hidden: str,
        *,
        factors: tuple[float, float] = (1.0, 1.0),
        silu: bool = False,
        residual: str | None = None,
    ) -> str:
        """Add a linear layer, x · wᵀ + b, then on request v / (1 + exp(-v)) or the sum with the residual.

        The weight is stored transposed, as ONNX Runtime wants it for Gemm. `factors` scale the weight and the bias.
        """
        assert not (silu and residual), "no layer has both"
        rows, columns = self.checkpoint.shape(f"{name}.weight")
        bias = f"{name}.bias"

        def read(name: str, by: float) -> NDArray[np.float32]:
            values = self.read_weight(name)
            turned: NDArray[np.float32] = (values if by == 1 else values * np.float32(by)).T
            return turned

        weight_factor, bias_factor = factors
        weight = Matrix(f"{name}.weight", (columns, rows), partial(read, f"{name}.weight", weight_factor))
        added = self.graph.weight(bias, (rows,), partial(read, bias, bias_factor), self._type)
        if self.weights == "int8" and is_layer(*weight.shape):
            kind, more = (LINEAR_ADD, [residual]) if residual else (LINEAR_SILU if silu else LINEAR, [])
            inputs = [hidden, *rounded_weight(self.graph, weight), added, *more]
            return self.graph.add(kind, name, inputs, domain=DOMAIN)
        multiplied = product(self.graph, self.weights, f"{name}.product", hidden, weight)
        result = self.graph.add("Add", name, [multiplied, added])
        if silu:
            gate = self.graph.add("Sigmoid", f"{name}.gate", [result])
            result = self.graph.add("Mul", f"{name}.activation", [result, gate])
        if residual:
            result = self.graph.add("Add", f"{name}.out", [residual, self._wide(result)])
        return result

    def gelu(self, name: str, hidden: str) -> str:
        """Add x / 2 · (1 + erf(x / √2)), the exact form that the projector was trained with."""
        scaled = self.graph.add("Div", f"{name}.scaled", [hidden, self._scalar("gelu.root_two", 2**0.5)])
        erf = self.graph.add("Erf", f"{name}.erf", [scaled])
        gate = self.graph.add("Add", f"{name}.gate", [erf, self._scalar("gelu.one", 1.0)])
        gated = self.graph.add("Mul", f"{name}.gated", [hidden, gate])
        return self.graph.add("Mul", name, [gated, self._scalar("gelu.half", 0.5)])

    def _scalar(self, name: str, value: float) -> str:
        return self.graph.weight(name, (), lambda: np.array(value, np.float32), self._type)

    def _narrow(self, name: str) -> str:
        """Cast float32 to the type inside a block."""
        return self._cast(f"{name}.narrow", name, TensorProto.FLOAT16)

    def _wide(self, name: str) -> str:
        """Cast the type inside a block to float32."""
        return self._cast(f"{name}.wide", name, TensorProto.FLOAT)

    def _cast(self, name: str, hidden: str, kind: int) -> str:
        return hidden if self.weights != "float16" else self.graph.add("Cast", name, [hidden], to=kind)

    def _weight(self, name: str) -> str:
        return self.graph.weight(name, self.checkpoint.shape(name), partial(self.read_weight, name))

    def read_weight(self, name: str) -> NDArray[np.float32]:
        """Return a weight of the checkpoint, by its canonical name."""
        return self.checkpoint.rows(name, slice(None))

    def _patch_positions(self) -> NDArray[np.float32]:
        return self.checkpoint.rows("vision.embeddings.position_embedding.weight", slice(1, None))

    def _class_token(self) -> NDArray[np.float32]:
        position = self.checkpoint.rows("vision.embeddings.position_embedding.weight", slice(0, 1))
        return position + self.read_weight("vision.embeddings.class_embedding")
