"""Forecast of a conversion: tensors by type, sizes, memory, time, free space."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from bimedix_edge.converters.decoder.gguf import TensorSpec
from bimedix_edge.converters.decoder.quantize import RowSource, n_threads, quantized_rows
from bimedix_edge.converters.job.job import Job
from bimedix_edge.staging import left_bytes

__all__ = ["Forecast", "TypeRow", "free_bytes", "make_forecast"]

# measured: the interpreter with its libraries; a token with its merges, in all its forms in memory; the values of a
# block in flight
_BASE_BYTES = 120 << 20
_BYTES_A_TOKEN = 1500
_BLOCK_VALUES = 1 << 20
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 64, 4096
_SAMPLE_SECONDS = 0.15


@dataclass(frozen=True)
class TypeRow:
    """The tensors of one type: their number, weights, bytes, and the time to compute them."""

    kind: str
    n_tensors: int
    n_weights: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """Forecast of a checked conversion.

    Attributes:
        file_type: Type of the decoder.
        rows: The decoder's tensors by type, the largest first.
        decoder_bytes, vision_bytes: Sizes of the files, upper estimates.
        source_bytes: Size of the source files.
        memory_bytes: Estimated peak of anonymous memory.
        seconds: Time of computing on the cores this process may use; a slow disk takes longer.
        free_bytes: Free space at the target, including the space of an interrupted conversion to it.
    """

    file_type: str
    rows: tuple[TypeRow, ...]
    decoder_bytes: int
    vision_bytes: int
    source_bytes: int
    memory_bytes: int
    seconds: float
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Return whether the result fits."""
        return self.decoder_bytes + self.vision_bytes <= self.free_bytes


def make_forecast(job: Job, target: Path) -> Forecast:
    """Sum up a conversion; the time is measured on random rows with ggml's own quantizer.

    Args:
        job: The checked conversion.
        target: Directory where the bundle would be.
    """
    decoder_bytes = job.decoder_bytes
    kinds = {tensor.kind: [item for item in job.tensors if item.kind == tensor.kind] for tensor in job.tensors}
    with ThreadPoolExecutor(n_threads()) as pool:
        rows = [_row(kind, tensors, _rate(kind, pool)) for kind, tensors in kinds.items()]
    ahead = 2 * n_threads() + 1
    largest_vision_weight_bytes = max(weight.size_bytes for weight in job.graph.weights.values())
    return Forecast(
        file_type=job.file_type.name,
        rows=tuple(sorted(rows, key=lambda row: -row.size_bytes)),
        decoder_bytes=decoder_bytes,
        vision_bytes=job.size_bytes - decoder_bytes,
        source_bytes=sum(path.stat().st_size for path in job.source_files.values()),
        # a weight of the tower is read, transposed and written whole; blocks of the decoder take 4 + 4 bytes a value
        memory_bytes=_BASE_BYTES
        + len(job.vocabulary.tokens) * _BYTES_A_TOKEN
        + max(ahead * 8 * _BLOCK_VALUES, 3 * largest_vision_weight_bytes),
        seconds=sum(row.seconds for row in rows),
        free_bytes=free_bytes(target),
    )


def free_bytes(target: Path) -> int:
    """Return the free space at the place of a directory, which need not exist."""
    place = next(path for path in (target, *target.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free + left_bytes(target)


def _row(kind: GGMLQuantizationType, tensors: Iterable[TensorSpec], rate: float) -> TypeRow:
    tensors = list(tensors)
    n_weights = sum(prod(tensor.shape) for tensor in tensors)
    size = sum(tensor.size_bytes for tensor in tensors)
    return TypeRow(kind.name, len(tensors), n_weights, size, n_weights / rate)


def _rate(kind: GGMLQuantizationType, pool: ThreadPoolExecutor) -> float:
    """Return the number of weights that all cores quantize to a type in a second."""
    values = np.random.default_rng(0).standard_normal((_SAMPLE_ROWS, _SAMPLE_COLUMNS), np.float32)
    source = RowSource(kind.name, kind, lambda _start, _stop: values)
    quantize = partial(quantized_rows, source, 0, _SAMPLE_ROWS)
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < _SAMPLE_SECONDS:
        for future in [pool.submit(quantize) for _ in range(2 * n_threads())]:
            future.result()
            done += values.size
    return done / seconds
