"""A checked conversion before it begins: what it reads, what it will write, and under which names."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.converters.decoder.gguf import About, TensorSpec, declare_decoder, declared_bytes, decoder_parts
from bimedix_edge.converters.decoder.imatrix import read_imatrix, with_importance
from bimedix_edge.converters.decoder.quantize import FileType, file_type_named
from bimedix_edge.converters.decoder.recipe import apply_recipe, read_recipe
from bimedix_edge.converters.options import ConvertOptions
from bimedix_edge.converters.parts import Part
from bimedix_edge.converters.source.card import CARD, Card, read_card
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.config import Aspect
from bimedix_edge.converters.source.tokenizer import SourceVocabulary, read_vocabulary
from bimedix_edge.converters.vision.graph import build_vision, vision_bytes, vision_parts
from bimedix_edge.converters.vision.onnx_file import Graph
from bimedix_edge.converters.vision.weights import VisionWeights
from bimedix_edge.prompt import PromptSpec

__all__ = ["DECODER", "VISION", "Job", "created_by", "open_checkpoint", "prepare"]

DECODER = "decoder.gguf"
VISION = "vision.onnx"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """A checked conversion.

    Attributes:
        checkpoint: The opened source.
        vocabulary: Its vocabulary.
        file_type: Type of the decoder's file.
        tensors: The decoder's declared tensors.
        graph: The vision graph.
        name: Name of the model.
        card: Its card.
        prompt: Its prompt.
        options: The user's options.
        vision: Weights of the vision graph.
    """

    checkpoint: Checkpoint
    vocabulary: SourceVocabulary
    file_type: FileType
    tensors: list[TensorSpec]
    graph: Graph
    name: str
    card: Card
    prompt: PromptSpec
    options: ConvertOptions
    vision: VisionWeights = "float32"

    @property
    def decoder_bytes(self) -> int:
        """Return the size of the decoder's file."""
        return declared_bytes(self.tensors, self.vocabulary)

    @property
    def size_bytes(self) -> int:
        """Return the size of the bundle, an upper estimate."""
        return self.decoder_bytes + vision_bytes(self.graph) + _SPARE_BYTES

    @property
    def source_files(self) -> dict[str, Path]:
        """Return the files that the bytes of the bundle depend on, by names that reveal nothing about this machine."""
        tokenizer = {name: self.checkpoint.directory / name for name in _TOKENIZER_FILES}
        return tokenizer | self.checkpoint.files | self.options.decoder_files

    def with_vision(self, kind: VisionWeights) -> Job:
        """Return the job with another vision graph."""
        return dataclasses.replace(self, vision=kind, graph=build_vision(self.checkpoint, kind))

    def decoder_parts(self) -> list[Part]:
        """Return the parts of the decoder's file."""
        card = self.card
        about = About(self.name, card.licence, card.languages, self.prompt.system, _url(card))
        return decoder_parts(
            self.checkpoint, self.tensors, file_type=self.file_type, vocabulary=self.vocabulary, about=about
        )

    def vision_parts(self) -> list[Part]:
        """Return the parts of the vision graph's file."""
        metadata = {"name": self.name, "licence": self.card.licence, "source": _url(self.card)}
        return vision_parts(
            self.checkpoint, self.graph, producer="bimedix-edge", metadata=metadata, weights=self.vision
        )

    def describe_source(self, hashes: dict[str, str]) -> dict[str, str]:
        """Describe the checkpoint: its published name and the hash of every source file, without local paths.

        Args:
            hashes: SHA-256 of the source files, by name.
        """
        source = {"model_type": self.checkpoint.config.model_type, "layout": self.checkpoint.layout}
        named = {"repository": self.card.repository, "revision": self.card.revision}
        source |= {key: value for key, value in named.items() if value}
        if self.options.zero_nonfinite:
            counts = self.checkpoint.nonfinite()
            source["zeroed"] = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"
        return source | {f"sha256:{name}": digest for name, digest in hashes.items()}


def prepare(directory: Path, options: ConvertOptions) -> Job:
    """Check everything that can be checked before a byte is written.

    Raises:
        CheckpointError, InputError, UsageError: See `convert.convert`.
    """
    kind = file_type_named(options.file_type)
    card = _card(directory, options.card)
    checkpoint = open_checkpoint(directory, options, card.aspect)
    return Job(
        checkpoint=checkpoint,
        vocabulary=read_vocabulary(directory, checkpoint.config.decoder.n_vocab),
        file_type=kind,
        tensors=_tensors(checkpoint, kind, options),
        graph=build_vision(checkpoint),
        name=options.name or card.name or directory.resolve().name,
        card=card,
        prompt=PromptSpec(system=card.system, bos=card.bos if options.bos is None else options.bos),
        options=options,
    )


def open_checkpoint(directory: Path, options: ConvertOptions, aspect: Aspect | None = None) -> Checkpoint:
    """Open a checkpoint with its tower and the adapter merged into it.

    Args:
        directory, options: See `convert.convert`.
        aspect: What the card says about images that are not square; the options override it.

    Raises:
        CheckpointError: See `Checkpoint` and `lora.read_adapter`.
    """
    return Checkpoint(
        directory,
        tower_directory=options.vision_tower,
        aspect=options.aspect or aspect,
        adapter_directory=options.lora,
        zero_nonfinite=options.zero_nonfinite,
    )


def _card(checkpoint: Path, card: Card | Path | None) -> Card:
    """Return the given card, read it from its file, or take the checkpoint's own if there is one."""
    if isinstance(card, Card):
        return card
    if card is not None:
        return read_card(card)
    return read_card(checkpoint / CARD) if (checkpoint / CARD).exists() else Card()


def _tensors(checkpoint: Checkpoint, file_type: FileType, options: ConvertOptions) -> list[TensorSpec]:
    """Declare the decoder's tensors with the recipe's types and the importance of their columns."""
    tensors = declare_decoder(checkpoint, file_type, has_imatrix=options.imatrix is not None)
    if options.recipe is not None:
        tensors = apply_recipe(tensors, read_recipe(options.recipe))
    return tensors if options.imatrix is None else with_importance(tensors, read_imatrix(options.imatrix))


def created_by() -> str:
    """Return the name and version of this program."""
    try:
        return f"bimedix-edge {importlib.metadata.version('bimedix-edge')}"
    except importlib.metadata.PackageNotFoundError:
        return "bimedix-edge"


def _url(card: Card) -> str:
    return f"https://huggingface.co/{card.repository}" if card.repository else ""
