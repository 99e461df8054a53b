"""A checkpoint directory to a bundle: everything is checked, then written beside the target, then renamed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import DecoderSpec, FileEntry, Manifest, Quality, VisionSpec, hash_file, write_manifest
from bimedix_edge.converters.additions import Additions
from bimedix_edge.converters.calibration_pictures import calibration_pictures
from bimedix_edge.converters.card import CARD, Card, read_card
from bimedix_edge.converters.checkpoint import Checkpoint
from bimedix_edge.converters.config import Aspect
from bimedix_edge.converters.decoder_gguf import About, PlannedTensor, decoder_parts, planned_bytes
from bimedix_edge.converters.journal import Journal, job_identity, open_journal
from bimedix_edge.converters.onnx_file import Graph
from bimedix_edge.converters.parts import Part, n_bytes, write_parts
from bimedix_edge.converters.plan import Plan, make_plan
from bimedix_edge.converters.quality import check_limits, measure_decoder, quality_of
from bimedix_edge.converters.quantize import FileType, file_type_named, n_threads
from bimedix_edge.converters.source_hashes import SourceHashes
from bimedix_edge.converters.tokenizer import Vocabulary, read_vocabulary
from bimedix_edge.converters.vision_choice import VisionJudge
from bimedix_edge.converters.vision_onnx import OPSET, build_vision, vision_bytes, vision_parts
from bimedix_edge.converters.vision_weights import VisionWeights
from bimedix_edge.errors import HardwareError
from bimedix_edge.prompt import PromptSpec
from bimedix_edge.staging import forget_cached, staged_directory

__all__ = ["Progress", "convert", "dry_run"]

# stage (`resume`, `trial`, `decoder`, `vision`, `source`, `quality`, `verify`), bytes done, bytes in all
Progress = Callable[[str, int, int], None]

_DECODER = "decoder.gguf"
_VISION = "vision.onnx"
_TRIAL = "trial.onnx"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_SPARE_BYTES = 1 << 20


def convert(
    checkpoint: Path,
    target: Path,
    *,
    file_type: str = "Q4_K_M",
    name: str | None = None,
    card: Card | Path | None = None,
    bos: int | None = None,
    aspect: Aspect | None = None,
    vision_tower: Path | None = None,
    lora: Path | None = None,
    recipe: Path | None = None,
    imatrix: Path | None = None,
    zero_nonfinite: bool = False,
    vision: VisionWeights | Literal["auto"] = "float32",
    pictures: Sequence[NDArray[np.uint8]] = (),
    strict: bool = False,
    replace: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Convert a published checkpoint into a bundle, or go on with a conversion of it that was interrupted.

    Args:
        checkpoint: a directory with config.json, safetensors and the tokenizer's files.
        target: the bundle's directory, which appears only when it is whole.
        file_type: of the decoder, a key of `quantize.FILE_TYPES` in any case.
        name: of the model; by default the card's, or the checkpoint directory's.
        card: licence, notice, prompt and source; by default the checkpoint's own card.toml, if it has one.
        bos: BOS tokens at the start of a prompt, 1 or 2; overrides the card.
        aspect: what to do with images that are not square; overrides the card.
        vision_tower: a CLIP checkpoint, for checkpoints that do not hold their tower.
        lora: a LoRA adapter (PEFT directory) to merge; see `lora`.
        recipe: a TOML file that gives some tensors another type; see `recipe`.
        imatrix: an importance matrix of llama.cpp; see `imatrix`.
        zero_nonfinite: whether weights that are NaN or infinite become 0, which the manifest then says.
        vision: the weights of the vision graph; `auto` takes int8, 8-bit weights only, or float32, the first whose
            image tokens are close enough to those of the tower in float32.
        pictures: uint8 (h, w, 3) each, on which the vision graph is judged; drawn ones by default.
        strict: whether to refuse a result that lost more than its types should; see `quality.LIMITS`.
        replace: whether an existing target is replaced.
        fresh: whether to begin anew where an interrupted conversion could be continued.
        progress: called with the stage, the bytes done and the bytes in all.

    Returns:
        The bundle's manifest.

    Raises:
        CheckpointError: the checkpoint cannot be converted, or not as well as asked; nothing was installed.
        HardwareError: the disk has too little room.
        InputError: the importance matrix cannot be used.
        UsageError: there is no such file type, the recipe cannot be used, or the target exists or is being written by
            another process.
    """
    additions = Additions(lora, recipe, imatrix, zero_nonfinite)
    job = _prepare(checkpoint, file_type, name, _card(checkpoint, card), bos, aspect, vision_tower, additions)
    report = progress or _silent
    judge = VisionJudge(job.checkpoint, pictures or calibration_pictures())
    with staged_directory(target, replace=replace, resume=True) as part:
        job = _with_vision(job, vision, judge, part / _TRIAL, report)
        files = _parts(job)
        identity = job_identity(_source_files(job), files, f"{_created_by()}, zeroing {zero_nonfinite}")
        with open_journal(part, identity, fresh=fresh, progress=partial(report, "resume")) as journal:
            _check_space(part, target, job.size_bytes - journal.kept_bytes)
            with SourceHashes(_source_files(job)) as hashes:
                _write(files, journal, hashes, report)
                source = _describe_source(job, hashes.result(partial(report, "source")))
            quality = _measure(job, part, judge, strict, report)
            manifest = _manifest(job, part, source, quality, report)
            write_manifest(part, manifest)
    return manifest


def dry_run(
    checkpoint: Path,
    target: Path,
    *,
    file_type: str = "Q4_K_M",
    aspect: Aspect | None = None,
    vision_tower: Path | None = None,
    additions: Additions = Additions(),  # noqa: B008  frozen
) -> Plan:
    """Check a conversion as `convert` does, and say what it would do; nothing is written.

    Args:
        checkpoint, target, file_type, aspect, vision_tower: see `convert`.
        additions: adapter, recipe and importance matrix.

    Raises:
        CheckpointError, InputError, UsageError: see `convert`.
    """
    job = _prepare(checkpoint, file_type, None, _card(checkpoint, None), None, aspect, vision_tower, additions)
    return make_plan(
        job.file_type.name,
        job.planned,
        n_tokens=len(job.vocabulary.tokens),
        decoder_bytes=job.decoder_bytes,
        vision_bytes=job.size_bytes - job.decoder_bytes,
        largest_vision_weight_bytes=max(weight.size_bytes for weight in job.graph.weights.values()),
        source_bytes=sum(path.stat().st_size for path in _source_files(job).values()),
        target=target,
    )


@dataclass(frozen=True)
class _Job:
    """A checked conversion."""

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    file_type: FileType
    planned: list[PlannedTensor]
    graph: Graph
    name: str
    card: Card
    prompt: PromptSpec
    additions: Additions
    vision: VisionWeights = "float32"
    choice: str = "asked for"

    @property
    def decoder_bytes(self) -> int:
        return planned_bytes(self.planned, self.vocabulary)

    @property
    def size_bytes(self) -> int:
        return self.decoder_bytes + vision_bytes(self.graph) + _SPARE_BYTES


def _card(checkpoint: Path, card: Card | Path | None) -> Card:
    if isinstance(card, Card):
        return card
    if card is not None:
        return read_card(card)
    return read_card(checkpoint / CARD) if (checkpoint / CARD).exists() else Card()


def _prepare(
    directory: Path,
    file_type: str,
    name: str | None,
    card: Card,
    bos: int | None,
    aspect: Aspect | None,
    vision_tower: Path | None,
    additions: Additions = Additions(),  # noqa: B008  frozen
) -> _Job:
    """Check everything that can be checked before a byte is written."""
    kind = file_type_named(file_type)
    checkpoint = additions.open(directory, vision_tower, aspect or card.aspect)
    return _Job(
        checkpoint=checkpoint,
        vocabulary=read_vocabulary(directory, checkpoint.config.decoder.n_vocab),
        file_type=kind,
        planned=additions.plan(checkpoint, kind),
        graph=build_vision(checkpoint),
        name=name or card.name or directory.resolve().name,
        card=card,
        prompt=PromptSpec(system=card.system, bos=card.bos if bos is None else bos),
        additions=additions,
    )


def _with_vision(
    job: _Job, wanted: VisionWeights | Literal["auto"], judge: VisionJudge, scratch: Path, report: Progress
) -> _Job:
    """Return the job with the graph that is asked for, or the first that is good enough."""
    kind, choice = judge.choose(scratch, partial(report, "trial")) if wanted == "auto" else (wanted, job.choice)
    return dataclasses.replace(job, vision=kind, choice=choice, graph=build_vision(job.checkpoint, kind))


def _measure(job: _Job, part: Path, judge: VisionJudge, strict: bool, report: Progress) -> Quality:
    errors = measure_decoder(part / _DECODER, job.checkpoint, job.planned, partial(report, "quality"))
    fidelity = judge.fidelity(part / _VISION, job.vision, job.choice)
    if strict:
        check_limits(errors, fidelity, job.vision)
    return quality_of(errors, fidelity)


def _check_space(part: Path, target: Path, needed: int) -> None:
    if (free := shutil.disk_usage(part).free) < needed:
        raise HardwareError(
            f"Expected {_megabytes(needed)} free to write {target}, but there are {_megabytes(free)}; "
            "free some space or choose another place."
        )


def _parts(job: _Job) -> dict[str, list[Part]]:
    """Return what each file of the bundle consists of, by the file's name."""
    card = job.card
    about = About(job.name, card.licence, card.languages, job.prompt.system, _url(card))
    decoder = decoder_parts(
        job.checkpoint,
        job.planned,
        file_type=job.file_type,
        vocabulary=job.vocabulary,
        about=about,
    )
    metadata = {"name": job.name, "licence": card.licence, "source": _url(card)}
    vision = vision_parts(job.checkpoint, job.graph, producer="bimedix-edge", metadata=metadata, weights=job.vision)
    return {_DECODER: decoder, _VISION: vision}


def _write(files: dict[str, list[Part]], journal: Journal, hashes: SourceHashes, report: Progress) -> None:
    total, before = sum(map(n_bytes, files.values())), 0
    with ThreadPoolExecutor(n_threads()) as pool:
        for name, parts in files.items():
            stage, size = name.partition(".")[0], n_bytes(parts)

            def show(done: int, stage: str = stage, size: int = size, before: int = before) -> None:
                hashes.allow((before + done) / total)
                report(stage, done, size)

            with journal.file(name) as file:
                write_parts(file, parts, pool, 2 * n_threads(), show)
            before += size


def _manifest(job: _Job, part: Path, source: dict[str, str], quality: Quality, report: Progress) -> Manifest:
    paths = {"decoder": part / _DECODER, "vision": part / _VISION}
    count = _counter("verify", sum(path.stat().st_size for path in paths.values()), report)
    for path in paths.values():
        forget_cached(path)
    files = {role: FileEntry(path.name, path.stat().st_size, hash_file(path, count)) for role, path in paths.items()}
    config, vision = job.checkpoint.config.decoder, job.checkpoint.config.vision
    return Manifest(
        name=job.name,
        files=files,
        decoder=DecoderSpec(
            architecture="llama",
            file_type=job.file_type.name,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_head=config.n_head,
            n_head_kv=config.n_head_kv,
            head_dim=config.head_dim,
            n_vocab=config.n_vocab,
            n_ctx_train=config.n_ctx_train,
        ),
        vision=VisionSpec(n_tokens=vision.n_patches, n_embd=config.n_embd, weights=job.vision, opset=OPSET),
        prompt=job.prompt,
        preprocessing=vision.preprocessing,
        source=source,
        licence=job.card.licence,
        notice=job.card.notice,
        created_by=_created_by(),
        quality=quality,
    )


def _source_files(job: _Job) -> dict[str, Path]:
    """Return every file that the bytes of the bundle depend on, by a name that tells nothing about this machine."""
    checkpoint = job.checkpoint
    tokenizer = {name: checkpoint.directory / name for name in _TOKENIZER_FILES}
    return tokenizer | checkpoint.files | job.additions.files


def _describe_source(job: _Job, hashes: dict[str, str]) -> dict[str, str]:
    """Return what the checkpoint was: its published name and the hash of every file read, without local paths."""
    source = {"model_type": job.checkpoint.config.model_type, "layout": job.checkpoint.layout}
    named = {"repository": job.card.repository, "revision": job.card.revision}
    source |= {key: value for key, value in named.items() if value}
    if job.additions.zero_nonfinite:
        source["zeroed"] = ", ".join(f"{name}: {count}" for name, count in job.checkpoint.nonfinite().items()) or "none"
    return source | {f"sha256:{name}": digest for name, digest in hashes.items()}


def _url(card: Card) -> str:
    return f"https://huggingface.co/{card.repository}" if card.repository else ""


def _created_by() -> str:
    try:
        return f"bimedix-edge {importlib.metadata.version('bimedix-edge')}"
    except importlib.metadata.PackageNotFoundError:
        return "bimedix-edge"


def _counter(stage: str, total: int, report: Progress) -> Callable[[int], None]:
    """Return a function that adds up bytes and reports the sum; totals are estimates, so the sum never exceeds them."""
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done = min(done + n_bytes, total)
        report(stage, done, total)

    return count


def _silent(_stage: str, _done: int, _total: int) -> None:
    return None


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
