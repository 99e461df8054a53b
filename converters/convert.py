"""Converts a checkpoint into a bundle: checks everything, writes it beside the target, then renames it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

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
from bimedix_edge.converters.job.forecast import Forecast, make_forecast
from bimedix_edge.converters.job.job import DECODER, VISION, Job, created_by, prepare
from bimedix_edge.converters.job.journal import Journal, job_identity, open_journal
from bimedix_edge.converters.options import DEFAULTS, ConvertOptions
from bimedix_edge.converters.parts import Part, n_bytes, write_parts
from bimedix_edge.converters.progress import StageProgress, byte_counter, ignore_progress, one_at_a_time
from bimedix_edge.converters.source.hashes import SourceHashes
from bimedix_edge.converters.vision.graph import OPSET
from bimedix_edge.converters.vision.weights import VisionWeights, tried_weights
from bimedix_edge.errors import HardwareError
from bimedix_edge.staging import check_replaceable, forget_cached, staged_directory

__all__ = ["ConvertOptions", "convert", "dry_run"]


def convert(
    checkpoint: Path, target: Path, options: ConvertOptions = DEFAULTS, progress: StageProgress | None = None
) -> Manifest:
    """Convert a published checkpoint into a bundle, or resume a conversion of it that was interrupted.

    Args:
        checkpoint: Directory with config.json, safetensors and the tokenizer's files.
        target: The bundle's directory, which appears only when it is whole.
        options: What the user chose.
        progress: Called with the stage, the bytes done and the bytes in all. One thread at a time calls it, which is
            not always the caller's thread.

    Returns:
        The bundle's manifest.

    Raises:
        CheckpointError: The checkpoint cannot be converted, or not as well as asked. Nothing was installed.
        HardwareError: The disk has too little room.
        InputError: The importance matrix cannot be used.
        UsageError: The file type does not exist, the recipe cannot be used, the target exists, or another process
            is writing it.
    """
    job = prepare(checkpoint, options)
    report = one_at_a_time(progress or ignore_progress)
    tried = {kind: job.with_vision(kind) for kind in tried_weights(options.vision)}
    with staged_directory(target, replace=options.replace, resume=True) as part:
        files: dict[str, list[Part]] = {
            DECODER: job.decoder_parts(),
            **{kind: item.vision_parts() for kind, item in tried.items()},
        }
        identity = job_identity(job.source_files, files, f"{created_by()}, zeroing {options.zero_nonfinite}")
        with (
            open_journal(part, identity, fresh=options.fresh, progress=partial(report, "resume")) as journal,
            VisionJudge(job.checkpoint, options.pictures or calibration_pictures(), journal) as judge,
        ):
            smallest = min(item.size_bytes for item in tried.values())
            _check_space(part, target, smallest - journal.kept_bytes)
            with SourceHashes(job.source_files) as hashes:
                judge.start(options.vision)
                writer = _Writer(journal, hashes, report, smallest)
                writer.write(DECODER, files[DECODER])

                def write_vision(kind: VisionWeights) -> None:
                    _check_space(part, target, tried[kind].size_bytes - journal.kept_bytes)
                    writer.write(VISION, files[kind])

                kind, fidelity = write_chosen(judge, journal, part / VISION, options.vision, write_vision)
                source = job.describe_source(hashes.result(partial(report, "source")))
            job = job.with_vision(kind)
            quality, entries = _read_back(job, part, journal, fidelity, report)
            manifest = _manifest(job, entries, source, quality)
            write_manifest(part, manifest)
    return manifest


def dry_run(checkpoint: Path, target: Path, options: ConvertOptions = DEFAULTS) -> Forecast:
    """Check a conversion as `convert` does, and forecast what it would do; nothing is written.

    Args:
        checkpoint, target, options: See `convert`. For the vision weights `auto`, the forecast is for int8, which the
            conversion tries first. If int8 is not good enough, the graph takes up to four times as much room, which
            the conversion then checks.

    Raises:
        CheckpointError, InputError, UsageError: See `convert`.
    """
    check_replaceable(target, replace=options.replace)
    job = prepare(checkpoint, options)
    return make_forecast(job.with_vision(tried_weights(options.vision)[0]), target)


def _read_back(
    job: Job, part: Path, journal: Journal, fidelity: VisionFidelity, report: StageProgress
) -> tuple[Quality, dict[str, FileEntry]]:
    """Read both files from the disk: hash them, and compare the decoder with its source in parallel."""
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
            measured = pool.submit(measure_decoder, paths["decoder"], job.checkpoint, job.tensors, show)
            count = byte_counter("verify", sum(path.stat().st_size for path in paths.values()), report)
            entries = {role: _entry(path, journal, count) for role, path in paths.items()}
            errors = measured.result()
        finally:
            ended.set()
    if job.options.strict:
        check_limits(errors, fidelity, job.vision)
    return quality_of(errors, fidelity), entries


def _entry(path: Path, journal: Journal, count: Callable[[int], None]) -> FileEntry:
    """Return the manifest's entry for a file, after checking that the disk returns the written bytes."""
    found, written = hash_file(path, count), journal.sha256(path.name)
    if found != written:
        raise HardwareError(
            f"The disk does not return {path.name} as it was written: its SHA-256 is {found[:16]}… instead of "
            f"{written[:16]}…. Nothing was installed. Check the disk, or choose another, and run the command again."
        )
    return FileEntry(path.name, path.stat().st_size, found)


def _check_space(part: Path, target: Path, needed: int) -> None:
    if (free := shutil.disk_usage(part).free) < needed:
        raise HardwareError(
            f"There is too little room for {target}: {_megabytes(free)} free, {_megabytes(needed)} needed. "
            "Free some space, or choose another place."
        )


class _Writer:
    """Writes the files of the bundle and reports the progress.

    Args:
        journal: Journal of the part directory.
        hashes: Hashes of the sources, which are read at about the same pace.
        report: Shows the progress to the user.
        total_bytes: Size of all files.
    """

    def __init__(self, journal: Journal, hashes: SourceHashes, report: StageProgress, total_bytes: int) -> None:
        self._journal = journal
        self._hashes = hashes
        self._report = report
        self._total_bytes = total_bytes
        self._before = 0

    def write(self, name: str, parts: list[Part]) -> None:
        """Write a file, except the parts that the journal keeps.

        Raises:
            CheckpointError: A weight cannot be converted.
            OSError: The disk is full or fails.
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


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
