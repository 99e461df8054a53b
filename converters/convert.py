"""A checkpoint directory to a bundle: everything is checked, then written beside the target, then renamed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import (
    DecoderSpec,
    FileEntry,
    Manifest,
    Quality,
    VisionFidelity,
    VisionSpec,
    hash_file,
    write_manifest,
)
from bimedix_edge.converters.check.pictures import calibration_pictures
from bimedix_edge.converters.check.quality import check_limits, measure_decoder, quality_of
from bimedix_edge.converters.check.vision_choice import VisionJudge, write_chosen
from bimedix_edge.converters.decoder.quantize import n_threads
from bimedix_edge.converters.job.additions import Additions
from bimedix_edge.converters.job.forecast import Plan, make_plan
from bimedix_edge.converters.job.job import DECODER, VISION, Job, created_by, prepare, read_job_card
from bimedix_edge.converters.job.journal import Journal, job_identity, open_journal
from bimedix_edge.converters.parts import Part, n_bytes, write_parts
from bimedix_edge.converters.source.card import Card
from bimedix_edge.converters.source.config import Aspect
from bimedix_edge.converters.source.hashes import SourceHashes
from bimedix_edge.converters.vision.graph import OPSET
from bimedix_edge.converters.vision.weights import VISION_WEIGHTS, VisionWeights
from bimedix_edge.errors import HardwareError
from bimedix_edge.staging import check_replaceable, forget_cached, staged_directory

__all__ = ["Progress", "convert", "dry_run"]

# stage (`resume`, `decoder`, `vision`, `source`, `quality`, `verify`), bytes done, bytes in all
Progress = Callable[[str, int, int], None]


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
        progress: called with the stage, the bytes done and the bytes in all; by one thread at a time, not always by
            the caller's.

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
    report = _one_at_a_time(progress or _silent)
    tried = {kind: job.with_vision(kind) for kind in (VISION_WEIGHTS if vision == "auto" else (vision,))}
    with staged_directory(target, replace=replace, resume=True) as part:
        files: dict[str, list[Part]] = {
            DECODER: job.decoder_parts(),
            **{kind: item.vision_parts() for kind, item in tried.items()},
        }
        identity = job_identity(job.source_files, files, f"{created_by()}, zeroing {zero_nonfinite}")
        with (
            open_journal(part, identity, fresh=fresh, progress=partial(report, "resume")) as journal,
            VisionJudge(job.checkpoint, pictures or calibration_pictures(), journal) as judge,
        ):
            smallest = min(item.size_bytes for item in tried.values())
            _check_space(part, target, smallest - journal.kept_bytes)
            with SourceHashes(job.source_files) as hashes:
                judge.start(vision)
                writer = _Writer(journal, hashes, report, smallest)
                writer.write(DECODER, files[DECODER])

                def write_vision(kind: VisionWeights) -> None:
                    _check_space(part, target, tried[kind].size_bytes - journal.kept_bytes)
                    writer.write(VISION, files[kind])

                kind, fidelity = write_chosen(judge, journal, part / VISION, vision, write_vision)
                source = job.describe_source(hashes.result(partial(report, "source")))
            job = job.with_vision(kind)
            quality, entries = _read_back(job, part, journal, fidelity, strict, report)
            manifest = _manifest(job, entries, source, quality)
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
    replace: bool = False,
) -> Plan:
    """Check a conversion as `convert` does, and say what it would do; nothing is written.

    Args:
        checkpoint, target, file_type, aspect, vision_tower, replace: see `convert`.
        additions: adapter, recipe and importance matrix.
        vision: see `convert`; for `auto`, what is planned for is int8, which the conversion tries first. If that is
            not good enough, the graph takes up to four times as much, which the conversion then checks.

    Raises:
        CheckpointError, InputError, UsageError: see `convert`.
    """
    check_replaceable(target, replace=replace)
    job = prepare(checkpoint, file_type, None, read_job_card(checkpoint, None), None, aspect, vision_tower, additions)
    job = job.with_vision(VISION_WEIGHTS[0] if vision == "auto" else vision)
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


def _read_back(
    job: Job, part: Path, journal: Journal, fidelity: VisionFidelity, strict: bool, report: Progress
) -> tuple[Quality, dict[str, FileEntry]]:
    """Read both files from the disk: hashed as a whole, and, beside that, the decoder compared with its source."""
    ended = threading.Event()

    def show(done: int, total: int) -> None:
        if ended.is_set():
            raise InterruptedError("the conversion has ended")
        report("quality", done, total)

    paths = {"decoder": part / DECODER, "vision": part / VISION}
    for path in paths.values():
        forget_cached(path)
    with ThreadPoolExecutor(1) as pool:
        try:
            measured = pool.submit(measure_decoder, paths["decoder"], job.checkpoint, job.planned, show)
            count = _counter("verify", sum(path.stat().st_size for path in paths.values()), report)
            entries = {role: _entry(path, journal, count) for role, path in paths.items()}
            errors = measured.result()
        finally:
            ended.set()
    if strict:
        check_limits(errors, fidelity, job.vision)
    return quality_of(errors, fidelity), entries


def _entry(path: Path, journal: Journal, count: Callable[[int], None]) -> FileEntry:
    """Return what the manifest says about a file, if the disk gives back what was written to it."""
    found, written = hash_file(path, count), journal.sha256(path.name)
    if found != written:
        raise HardwareError(
            f"Expected {path.name} as it was written, with the SHA-256 {written[:16]}…, but the disk gives back "
            f"{found[:16]}…; nothing was installed: check the disk, or choose another, and run the command again."
        )
    return FileEntry(path.name, path.stat().st_size, found)


def _check_space(part: Path, target: Path, needed: int) -> None:
    if (free := shutil.disk_usage(part).free) < needed:
        raise HardwareError(
            f"Expected {_megabytes(needed)} free to write {target}, but there are {_megabytes(free)}; "
            "free some space or choose another place."
        )


class _Writer:
    """Writes the files of the bundle, and tells how far that is.

    Args:
        journal: of the part directory.
        hashes: of the sources, which are read at about the same pace.
        report: what the user sees.
        total_bytes: of all files.
    """

    def __init__(self, journal: Journal, hashes: SourceHashes, report: Progress, total_bytes: int) -> None:
        self._journal = journal
        self._hashes = hashes
        self._report = report
        self._total_bytes = total_bytes
        self._before = 0

    def write(self, name: str, parts: list[Part]) -> None:
        """Write a file, or what is not there of it.

        Raises:
            CheckpointError: a weight cannot be converted.
            OSError: the disk is full or fails.
        """
        stage, size = name.partition(".")[0], n_bytes(parts)

        def show(done: int) -> None:
            self._hashes.allow(min((self._before + done) / self._total_bytes, 1.0))
            self._report(stage, done, size)

        with ThreadPoolExecutor(n_threads()) as pool, self._journal.file(name) as file:
            write_parts(file, parts, pool, 2 * n_threads(), show)
        self._before += size


def _manifest(job: Job, files: dict[str, FileEntry], source: dict[str, str], quality: Quality) -> Manifest:
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


def _one_at_a_time(progress: Progress) -> Progress:
    """Return a function that several threads may call."""
    lock = threading.Lock()

    def report(stage: str, done: int, total: int) -> None:
        with lock:
            progress(stage, done, total)

    return report


def _silent(_stage: str, _done: int, _total: int) -> None:
    return None


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
