"""A published checkpoint on disk: its configuration, and its tensors under canonical names, read lazily.

Everything is checked before anything is converted. `declare` states the tensors that the configuration implies; they
are compared with the shards, and every difference is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.source.config import Aspect, CheckpointConfig, DecoderConfig, read_config
from bimedix_edge.converters.source.lora import CONFIG, WEIGHTS, Adapter, read_adapter
from bimedix_edge.converters.source.naming import canonical_name, detect_layout, is_buffer
from bimedix_edge.converters.source.safetensors_file import FLOAT_DTYPES, SafetensorsFile, TensorEntry
from bimedix_edge.converters.source.shards import open_shards
from bimedix_edge.converters.source.vision_config import VisionConfig
from bimedix_edge.errors import CheckpointError

__all__ = ["Checkpoint", "as_float32", "declare"]

_MAX_LISTED = 12
_BLOCK_VALUES = 1 << 22
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Source:
    """Place of one tensor: a file and the name it has there."""

    file: SafetensorsFile
    name: str

    @property
    def entry(self) -> TensorEntry:
        return self.file.entries[self.name]


class Checkpoint:
    """An opened checkpoint whose tensors are complete and of the declared shapes.

    Args:
        directory: Directory with config.json, the safetensors shards and the tokenizer's files.
        tower_directory: CLIP checkpoint with the vision tower, if the shards do not contain it.
        aspect: How an image that is not square becomes square; overrides the checkpoint's configuration.
        adapter_directory: LoRA adapter (PEFT) to merge into the weights.
        zero_nonfinite: Whether a weight that is NaN or infinite is read as 0.

    Attributes:
        config: Its configuration.
        layout: Layout of its tensors' names, one of `naming.LAYOUTS`.
        files: Its configurations and shards, by names that reveal nothing about this machine.
        adapted: Canonical names of the weights that the adapter changes.

    Raises:
        CheckpointError: The checkpoint is of another family, damaged, unsafe or incomplete, or needs an unsupported
            feature.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tower_directory: Path | None = None,
        aspect: Aspect | None = None,
        adapter_directory: Path | None = None,
        zero_nonfinite: bool = False,
    ) -> None:
        if not directory.is_dir():
            raise CheckpointError(
                f"{directory} is not a directory. Give the directory of a checkpoint, with its config.json."
            )
        self.directory = directory
        self.config: CheckpointConfig = read_config(directory, tower_directory=tower_directory, aspect=aspect)
        self.files = _described_in(directory, "")
        if self.config.tower:
            self.files |= _described_in(directory / self.config.tower, f"{self.config.tower}/")
        shards = open_shards(directory)
        self.files |= {file.path.name: file.path for file in shards}
        self.layout, self._sources = _sources(shards)
        if tower_directory is not None:
            self._add_tower(tower_directory)
        self._zero_nonfinite = zero_nonfinite
        self._adapter: Adapter | None = None
        self._check()
        if adapter_directory is not None:
            self._adapter = self._adapt(adapter_directory)
        self.adapted = [] if self._adapter is None else self._adapter.names

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of its file; no adapter is merged into it.

        Args:
            name: Canonical name; see `naming`.

        Returns:
            float32, float16 or bfloat16 (ml_dtypes).
        """
        source = self._sources[name]
        return source.file.array(source.name)

    def rows(self, name: str, select: slice | NDArray[np.intp]) -> NDArray[np.float32]:
        """Return some rows of a tensor as float32, the only copy that conversion makes of them.

        Args:
            name: Canonical name.
            select: Slice, or row numbers in the wanted order, int (n,).

        Returns:
            float32 (n, …), C-contiguous and aligned. The values are exact, since every source type is a subset of
            float32; only the sum with an adapter is rounded, once.
        """
        values = as_float32(self.array(name), select)
        if self._zero_nonfinite and not (finite := np.isfinite(values)).all():
            values[~finite] = 0
        return values if self._adapter is None else self._adapter.merged(name, select, values)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, by its canonical name."""
        return self._sources[name].entry.shape

    def nonfinite(self) -> dict[str, int]:
        """Return the number of NaN and infinite weights of each tensor that has any; reads all tensors."""
        counts = {}
        for name, source in self._sources.items():
            if source.entry.dtype in FLOAT_DTYPES:
                flat = self.array(name).reshape(-1)
                blocks = (flat[start : start + _BLOCK_VALUES] for start in range(0, flat.size, _BLOCK_VALUES))
                counts[name] = sum(int((~np.isfinite(as_float32(block))).sum()) for block in blocks)
        return {name: count for name, count in sorted(counts.items()) if count}

    def _add_tower(self, directory: Path) -> None:
        """Take the tower from a CLIP checkpoint; the checkpoint's own tower, if any, is then an error."""
        if any(name.startswith("vision.") for name in self._sources):
            raise CheckpointError(
                "The checkpoint already contains a vision tower, so the one you named is not used. "
                "Leave the tower's directory out."
            )
        self.files |= _described_in(directory, "vision_tower:")
        for file in open_shards(directory):
            self.files[f"vision_tower:{file.path.name}"] = file.path
            for name in file.entries:
                canonical = canonical_name(name, "tower")
                if not is_buffer(name, "tower"):
                    self._sources[canonical or f"?{name}"] = _Source(file, name)

    def _adapt(self, directory: Path) -> Adapter:
        required, optional = declare(self.config)
        # conversion reads no copy of tied embeddings: an adapter for it would be lost silently
        unused = {"lm_head.weight"} if self.config.decoder.tied else set()
        shapes = {name: shape for name, shape in (required | optional).items() if name not in unused}
        adapter = read_adapter(directory, self.layout, shapes)
        self._sources |= {name: _Source(adapter.file, saved) for name, saved in adapter.saved.items()}
        self.files |= {f"lora:{name}": directory / name for name in (CONFIG, WEIGHTS)}
        return adapter

    def _check(self) -> None:
        required, optional = declare(self.config)
        if not any(name.startswith("vision.") for name in self._sources):
            raise CheckpointError(
                "The checkpoint does not contain the vision tower's tensors. Name the directory of the CLIP checkpoint "
                "it was trained with, in safetensors; mm_vision_tower in config.json says which."
            )
        faults = list(_differences(required, optional, self._sources))
        if faults:
            shown = "; ".join(faults[:_MAX_LISTED])
            more = f"; and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
            raise CheckpointError(
                f"The tensors do not match config.json: {shown}{more}. "
                "Download the checkpoint again, or check that config.json belongs to it."
            )
        if self.config.decoder.tied and "lm_head.weight" in self._sources:
            self._check_tied()

    def _check_tied(self) -> None:
        """Check that an output matrix saved beside tied embeddings equals them, as transformers assumes."""
        step = max(1, (1 << 22) // self.config.decoder.n_embd)
        for start in range(0, self.config.decoder.n_vocab, step):
            block = slice(start, start + step)
            if not np.array_equal(self.rows("lm_head.weight", block), self.rows("model.embed_tokens.weight", block)):
                raise CheckpointError(
                    "lm_head.weight differs from the embeddings although tie_word_embeddings ties them. "
                    "Set tie_word_embeddings to what the model was trained with."
                )


def as_float32(values: NDArray[Any], select: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float32]:
    """Return a copy of some rows of a file's view as float32.

    Args:
        values: View of the file: float32, float16 or bfloat16, contiguous, possibly unaligned.
        select: Slice or row numbers of the first axis.

    Returns:
        float32, C-contiguous; exact.
    """
    if values.dtype != FLOAT_DTYPES["BF16"]:
        return np.array(values[select], np.float32, order="C")
    # bfloat16 is the upper half of float32; ml_dtypes' own casts keep Python's lock, which would block other cores
    return np.left_shift(values.view(np.uint16)[select], 16, dtype=np.uint32).view(np.float32)


def declare(config: CheckpointConfig) -> tuple[dict[str, _Shape], dict[str, _Shape]]:
    """State every tensor that a checkpoint with this configuration contains.

    Returns:
        Canonical name to shape: of the tensors that conversion needs, and of those that it permits but does not read.
    """
    decoder, vision = config.decoder, config.vision
    required = dict(_declare_decoder(decoder)) | dict(_declare_tower(vision, range(config.n_blocks)))
    required |= {
        "projector.0.weight": (decoder.n_embd, vision.n_embd),
        "projector.0.bias": (decoder.n_embd,),
        "projector.2.weight": (decoder.n_embd, decoder.n_embd),
        "projector.2.bias": (decoder.n_embd,),
    }
    # the blocks after the feature layer and the norm of the class token have no influence on the decoder
    optional = dict(_declare_tower(vision, range(config.n_blocks, vision.n_layer)))
    optional = {name: shape for name, shape in optional.items() if name not in required}
    optional |= {f"vision.post_layernorm.{part}": (vision.n_embd,) for part in ("weight", "bias")}
    if decoder.tied:
        optional["lm_head.weight"] = required.pop("lm_head.weight")
    return required, optional


def _declare_decoder(config: DecoderConfig) -> Iterator[tuple[str, _Shape]]:
    n_embd, n_q, n_kv = config.n_embd, config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    yield "model.embed_tokens.weight", (config.n_vocab, n_embd)
    yield "model.norm.weight", (n_embd,)
    yield "lm_head.weight", (config.n_vocab, n_embd)
    for layer in range(config.n_layer):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", (n_embd,)
        yield block + "self_attn.q_proj.weight", (n_q, n_embd)
        yield block + "self_attn.k_proj.weight", (n_kv, n_embd)
        yield block + "self_attn.v_proj.weight", (n_kv, n_embd)
        yield block + "self_attn.o_proj.weight", (n_embd, n_q)
        yield block + "post_attention_layernorm.weight", (n_embd,)
        yield block + "mlp.gate_proj.weight", (config.n_ff, n_embd)
        yield block + "mlp.up_proj.weight", (config.n_ff, n_embd)
        yield block + "mlp.down_proj.weight", (n_embd, config.n_ff)


def _declare_tower(config: VisionConfig, blocks: range) -> Iterator[tuple[str, _Shape]]:
    n_embd, patch = config.n_embd, config.patch_px
    yield "vision.embeddings.class_embedding", (n_embd,)
    yield "vision.embeddings.patch_embedding.weight", (n_embd, 3, patch, patch)
    yield "vision.embeddings.position_embedding.weight", (config.n_patches + 1, n_embd)
    # sic: CLIP's own spelling
    yield from _linear("vision.pre_layrnorm", (n_embd,))
    for index in blocks:
        block = f"vision.encoder.layers.{index}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{block}self_attn.{part}", (n_embd, n_embd))
        yield from _linear(block + "layer_norm1", (n_embd,))
        yield from _linear(block + "layer_norm2", (n_embd,))
        yield from _linear(block + "mlp.fc1", (config.n_ff, n_embd))
        yield from _linear(block + "mlp.fc2", (n_embd, config.n_ff))


def _linear(name: str, shape: _Shape) -> Iterator[tuple[str, _Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _differences(
    required: Mapping[str, _Shape], optional: Mapping[str, _Shape], sources: Mapping[str, _Source]
) -> Iterator[str]:
    """Yield a fault for each tensor that is missing, unknown, or of another shape or type than declared."""
    yield from (f"{name} is missing" for name in required if name not in sources)
    for canonical, source in sources.items():
        shape = required.get(canonical, optional.get(canonical))
        if shape is None:
            yield f"{source.name[:120]} is not expected"
        elif source.entry.shape != shape:
            yield f"{source.name} has the shape {list(source.entry.shape)} instead of {list(shape)}"
        elif source.entry.dtype not in FLOAT_DTYPES:
            yield f"{source.name} is {source.entry.dtype} instead of {', '.join(FLOAT_DTYPES)}"


def _sources(files: list[SafetensorsFile]) -> tuple[str, dict[str, _Source]]:
    """Detect the layout and map canonical names to the tensors of all shards."""
    layout = detect_layout(name for file in files for name in file.entries)
    if layout is None:
        example = next((name for file in files for name in file.entries), "no tensor")
        raise CheckpointError(
            "The names of the tensors follow neither LLaVA nor transformers' Llava, or both "
            f"(the shards contain {example[:80]!r}). Give a BiMediX2 checkpoint."
        )
    sources: dict[str, _Source] = {}
    for file in files:
        for name in file.entries:
            if is_buffer(name, layout):
                continue
            canonical = canonical_name(name, layout) or f"?{name}"  # no declared name starts so
            if canonical in sources:
                raise CheckpointError(
                    f"{name[:120]} is both in {sources[canonical].file.path.name} and in {file.path.name}. "
                    "Download the checkpoint again."
                )
            sources[canonical] = _Source(file, name)
    return layout, sources


def _described_in(directory: Path, prefix: str) -> dict[str, Path]:
    """Return the configuration files of a directory, by name."""
    paths = (directory / name for name in ("config.json", "preprocessor_config.json"))
    return {prefix + path.name: path for path in paths if path.is_file()}
