"""A checkpoint directory to a bundle: everything is checked, then written beside the target, then renamed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import DecoderSpec, FileEntry, Manifest, Quality, VisionSpec, hash_file, write_manifest
from bimedix_edge.converters.additions import Additions
from bimedix_edge.converters.calibration_pictures import calibration_pictures
from bimedix_edge.converters.card import Card
from bimedix_edge.converters.config import Aspect
from bimedix_edge.converters.job import DECODER, VISION, Job, created_by, prepare, read_job_card
from bimedix_edge.converters.journal import Journal, job_identity, open_journal
from bimedix_edge.converters.parts import Part, n_bytes, write_parts
from bimedix_edge.converters.plan import Plan, make_plan
from bimedix_edge.converters.quality import check_limits, measure_decoder, quality_of
from bimedix_edge.converters.quantize import n_threads
from bimedix_edge.converters.source_hashes import SourceHashes
from bimedix_edge.converters.vision_choice import VisionJudge
from bimedix_edge.converters.vision_onnx import OPSET, build_vision
from bimedix_edge.converters.vision_weights import VisionWeights
from bimedix_edge.errors import HardwareError
from bimedix_edge.staging import forget_cached, staged_directory

__all__ = ["Progress", "convert", "dry_run"]

# stage (`resume`, `trial`, `decoder`, `vision`, `source`, `quality`, `verify`), bytes done, bytes in all
Progress = Callable[[str, int, int], None]

_TRIAL = "trial.onnx"


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
    job = prepare(checkpoint, file_type, name, read_job_card(checkpoint, card), bos, aspect, vision_tower, additions)
    report = progress or _silent
    judge = VisionJudge(job.checkpoint, pictures or calibration_pictures())
    with staged_directory(target, replace=replace, resume=True) as part:
        job = _with_vision(job, vision, judge, part / _TRIAL, report)
        files = job.parts()
        identity = job_identity(job.source_files, files, f"{created_by()}, zeroing {zero_nonfinite}")
        with open_journal(part, identity, fresh=fresh, progress=partial(report, "resume")) as journal:
            _check_space(part, target, job.size_bytes - journal.kept_bytes)
            with SourceHashes(job.source_files) as hashes:
                _write(files, journal, hashes, report)
                source = job.describe_source(hashes.result(partial(report, "source")))
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
    vision: VisionWeights | Literal["auto"] = "float32",
) -> Plan:
    """Check a conversion as `convert` does, and say what it would do; nothing is written.

    Args:
        checkpoint, target, file_type, aspect, vision_tower: see `convert`.
        additions: adapter, recipe and importance matrix.
        vision: see `convert`; for `auto`, what is planned for is float32, the largest.

    Raises:
        CheckpointError, InputError, UsageError: see `convert`.
    """
    job = prepare(checkpoint, file_type, None, read_job_card(checkpoint, None), None, aspect, vision_tower, additions)
    if vision != "auto":
        job = dataclasses.replace(job, vision=vision, graph=build_vision(job.checkpoint, vision))
    return make_plan(
        job.file_type.name,
        job.planned,
        n_tokens=len(job.vocabulary.tokens),
        decoder_bytes=job.decoder_bytes,
        vision_bytes=job.size_bytes - job.decoder_bytes,
        largest_vision_weight_bytes=max(weight.size_bytes for weight in job.graph.weights.values()),
        source_bytes=sum(path.stat().st_size for path in job.source_files.values()),
        target=target,
    )


def _with_vision(
    job: Job, wanted: VisionWeights | Literal["auto"], judge: VisionJudge, scratch: Path, report: Progress
) -> Job:
    """Return the job with the graph that is asked for, or the first that is good enough."""
    kind, choice = judge.choose(scratch, partial(report, "trial")) if wanted == "auto" else (wanted, job.choice)
    return dataclasses.replace(job, vision=kind, choice=choice, graph=build_vision(job.checkpoint, kind))


def _measure(job: Job, part: Path, judge: VisionJudge, strict: bool, report: Progress) -> Quality:
    errors = measure_decoder(part / DECODER, job.checkpoint, job.planned, partial(report, "quality"))
    fidelity = judge.fidelity(part / VISION, job.vision, job.choice)
    if strict:
        check_limits(errors, fidelity, job.vision)
    return quality_of(errors, fidelity)


def _check_space(part: Path, target: Path, needed: int) -> None:
    if (free := shutil.disk_usage(part).free) < needed:
        raise HardwareError(
            f"Expected {_megabytes(needed)} free to write {target}, but there are {_megabytes(free)}; "
            "free some space or choose another place."
        )


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


def _manifest(job: Job, part: Path, source: dict[str, str], quality: Quality, report: Progress) -> Manifest:
    paths = {"decoder": part / DECODER, "vision": part / VISION}
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
        created_by=created_by(),
        quality=quality,
    )


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
