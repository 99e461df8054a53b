"""Measures how fast a decoder runs here: our kernels and llama.cpp's own in turn, beside what the machine does at most.

Both are measured in the same run, one right after the other and again each round, since a machine's speed changes with
its temperature and with what else it does. This prints nothing.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bimedix_edge.bench.workloads import N_BATCH, N_CTX, N_SEQ_MAX, Side, Subject, Workload, Workloads
from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.decoder.kernels import OFF, Kernels, int8_ops, read_bandwidth
from bimedix_edge.decoder.llama import open_kernels
from bimedix_edge.decoder.placement import DecoderOptions, Placement
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.engine import Engine
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.events import Cancel
from bimedix_edge.hardware.machine import inspect_machine
from bimedix_edge.hardware.nvidia_bandwidth import copy_bandwidth
from bimedix_edge.vision.encoder import EncoderFile, VisionEncoder

__all__ = ["ON", "Benchmark", "Measurement", "measure"]

ON = "on"
_CEILING_S = 0.3
_ON_CPU = Placement()
_CUDA_DEVICE = re.compile(r"CUDA(\d+)")
_F16_BYTES, _F32_BYTES = 2, 4
# vectors of the model's width that a token's graph holds at once, about
_VECTORS = 16

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measurement:
    """How long one kind of work took.

    Attributes:
        workload: what was done.
        seconds: of each round, by `on` and `off`; empty for what could not be measured.
    """

    workload: Workload
    seconds: Mapping[str, Sequence[float]]

    def median_s(self, side: str) -> float | None:
        """Return the median seconds of `on` or `off`; None if that was not measured."""
        return statistics.median(self.seconds[side]) if self.seconds[side] else None

    def rate(self, side: str) -> float | None:
        """Return tokens a second of `on` or `off`; None if that was not measured, or it is about images."""
        seconds, n_tokens = self.median_s(side), self.workload.n_tokens
        return None if seconds is None or n_tokens is None else n_tokens / seconds

    @property
    def ratio(self) -> float | None:
        """Return how many times as fast `on` is as `off`; None if one was not measured."""
        on, off = self.median_s(ON), self.median_s(OFF)
        return None if on is None or off is None else off / on


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    Attributes:
        measurements: in the order in which they were taken.
        kernels: what `on` is, and why.
        rounds: how often each was taken.
        n_threads: that computed.
        both_loaded: whether on and off took turns at each measurement; otherwise one was loaded after the other.
        read_bytes_per_s: read from memory by all threads, at most; None where that cannot be measured.
        card_bytes_per_s: read and written by the card that holds all layers, at most; None where none does, or that
            cannot be measured.
        int8_ops_per_s: multiplications and additions of bytes on registers by all threads, at most; likewise.
        load_s: how long opening the decoder took, by `on` and `off`; the first time, where it was opened again.
        placement: what was where.
        vision_device: what computed the image encoder; None where there was none.
    """

    measurements: Sequence[Measurement]
    kernels: Kernels
    rounds: int
    n_threads: int
    both_loaded: bool
    read_bytes_per_s: float | None
    card_bytes_per_s: float | None
    int8_ops_per_s: float | None
    load_s: Mapping[str, float]
    placement: Placement
    vision_device: str | None

    def ceiling_of(self, measurement: Measurement) -> str | None:
        """Return what limits a measurement at best: `read`, `card`, `int8`; None where that is not known."""
        ceiling, n_gpu_layers = measurement.workload.ceiling, self.placement.n_gpu_layers
        if n_gpu_layers == 0 or ceiling is None:
            return ceiling
        # partly here and partly there, or products on a card: there is no one limit that is measured
        return "card" if ceiling == "read" and self.card_bytes_per_s is not None else None

    def share(self, measurement: Measurement, side: str) -> float | None:
        """Return what part of its ceiling a measurement reaches, 1 being all; None where that is not known."""
        ceilings = {"read": self.read_bytes_per_s, "card": self.card_bytes_per_s, "int8": self.int8_ops_per_s}
        work, seconds, limit = measurement.workload, measurement.median_s(side), self.ceiling_of(measurement)
        ceiling = None if limit is None else ceilings[limit]
        return None if ceiling is None or seconds is None else work.work / seconds / ceiling


def measure(
    subject: Subject,
    *,
    rounds: int,
    n_threads: int,
    kernels: str,
    cancel: Cancel,
    progress: Progress,
    only: Sequence[str] = (),
    placement: Placement = _ON_CPU,
    vision_device: str = "cpu",
) -> Benchmark:
    """Measure a decoder with and without our kernels.

    Args:
        subject: what is measured.
        rounds: how often each measurement is taken, 1 or more.
        n_threads: of the matmuls and of the vision encoder.
        kernels: what `on` means, one of `kernels.CHOICES` but `off`.
        cancel: stops at the next operation.
        progress: called with the measurements done, those to do, and what comes next.
        only: what is measured, by parts of the names of workloads; everything where it is empty.
        placement: what of the decoder is where; all of it with the CPU by default.
        vision_device: what computes the image encoder, see `vision.VisionEncoder`.

    Raises:
        UsageError: one of `only` is part of no name.
        Aborted: it was cancelled.
        HardwareError: it does not fit into this machine's memory, or the kernels cannot be used.
        DecoderError, VisionError: an engine refuses it.
    """
    return _Run(subject, n_threads, kernels, cancel, progress, only, placement, vision_device).measure(rounds)


class _Run:
    """One benchmark."""

    def __init__(
        self,
        subject: Subject,
        n_threads: int,
        kernels: str,
        cancel: Cancel,
        progress: Progress,
        only: Sequence[str],
        placement: Placement,
        vision_device: str,
    ) -> None:
        self._subject = subject
        self._placement = placement
        self._vision_device = vision_device
        self._n_threads = n_threads
        self._choices = {OFF: OFF, ON: kernels}
        self._cancel = cancel
        self._progress = progress
        self._workloads = Workloads(subject, cancel)
        self._all = _chosen(self._workloads.all(), only)
        self._seconds: list[dict[str, list[float]]] = [{OFF: [], ON: []} for _ in self._all]
        self._kernels: Kernels | None = None
        self._load_s: dict[str, float] = {}
        self._read: list[float] = []
        self._int8: list[float] = []
        self._n_done = self._n_to_do = 0
        self._vision: VisionEncoder | None = None

    def measure(self, rounds: int) -> Benchmark:
        self._n_to_do = rounds * len(self._all) * len(self._choices)
        both = self._fits_twice()
        self._open_vision()
        if both:
            with self._open(OFF) as off, self._open(ON) as on:
                for index in range(rounds):
                    # the other one first, each time: what the one before leaves behind helps neither
                    self._take([off, on] if index % 2 == 0 else [on, off])
        else:
            for _ in range(rounds):
                for name in self._choices:
                    with self._open(name) as side:
                        self._take([side])
        assert self._kernels is not None, "both sides were opened"
        return Benchmark(
            measurements=[Measurement(*pair) for pair in zip(self._all, self._seconds, strict=True)],
            kernels=self._kernels,
            rounds=rounds,
            n_threads=self._n_threads,
            both_loaded=both,
            read_bytes_per_s=statistics.median(self._read) if self._read else None,
            int8_ops_per_s=statistics.median(self._int8) if self._int8 else None,
            load_s=self._load_s,
            card_bytes_per_s=self._card_bandwidth(),
            placement=self._placement,
            vision_device=None if self._vision is None else self._vision.device,
        )

    def _card_bandwidth(self) -> float | None:
        """Return that of the one CUDA device that holds all layers, the output layer included."""
        placement = self._placement
        if placement.n_gpu_layers <= self._subject.spec.n_layer or len(placement.devices) != 1:
            return None
        match = _CUDA_DEVICE.fullmatch(placement.devices[0])
        return None if match is None else copy_bandwidth(int(match[1]))

    def _fits_twice(self) -> bool:
        """Tell whether the decoder fits into memory both as it is in the file and as llama.cpp rearranges it."""
        spec, bundle = self._subject.spec, self._subject.bundle
        cache = 2 * spec.n_layer * spec.n_head_kv * spec.head_dim * _F16_BYTES * N_CTX
        buffers = N_BATCH * (spec.n_vocab + _VECTORS * spec.n_embd) * _F32_BYTES
        vision = 0 if bundle is None else bundle.manifest.files["vision"].size_bytes
        once = self._subject.weights.file_bytes + cache + buffers + vision
        machine = inspect_machine()
        if machine.memory_bytes is not None and once > machine.memory_bytes:
            raise HardwareError(
                f"Expected memory for {once / 1e9:.1f} GB, but this machine has {machine.memory_bytes / 1e9:.1f} GB; "
                "choose a smaller model or a smaller type."
            )
        # a card is planned for one
        on_cpu = self._placement.n_gpu_layers == 0
        return on_cpu and machine.available_bytes is not None and 2 * once < machine.available_bytes

    def _open_vision(self) -> None:
        if (bundle := self._subject.bundle) is not None:
            self._vision = VisionEncoder(
                EncoderFile.of(bundle), self._n_threads, device=self._vision_device, kernels=self._choices[ON]
            )

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[Side | None]:
        """Load a side; there is none where `on` turns out to be the same as off."""
        if name == ON and self._kernels is not None and self._kernels.name is None:
            yield None
            return
        self._progress(self._n_done, self._n_to_do, f"loading, kernels {name}")
        start_s = time.perf_counter()
        decoder = Decoder(
            self._subject.path,
            self._subject.spec,
            DecoderOptions(
                n_ctx=N_CTX,
                n_seq_max=N_SEQ_MAX,
                n_batch=N_BATCH,
                n_threads=self._n_threads,
                kernels=self._choices[name],
                placement=self._placement,
            ),
        )
        self._load_s.setdefault(name, time.perf_counter() - start_s)
        with decoder:
            self._workloads.stop_if_asked()
            if name == ON:
                self._kernels = decoder.kernels
            if name == ON and decoder.kernels.name is None:
                yield None
            else:
                self._workloads.warm_up(decoder)
                engine = Engine(decoder, ImageEmbeddings(self._vision)) if self._vision else None
                yield Side(name, self._choices[name], decoder, engine)

    def _take(self, sides: Sequence[Side | None]) -> None:
        """Take each measurement once with each side, one right after the other; then the machine's ceilings."""
        for workload, seconds in zip(self._all, self._seconds, strict=True):
            for side in sides:
                if side is not None:
                    self._progress(self._n_done, self._n_to_do, f"{workload.name}, kernels {side.name}")
                    open_kernels(side.choice)
                    taken = workload.take(side)
                    # an answer that is stopped ends early without an error
                    self._workloads.stop_if_asked()
                    seconds[side.name].append(taken)
                self._n_done += 1
        if self._kernels is not None and self._kernels.name is not None:
            self._progress(self._n_done, self._n_to_do, "what the machine does at most")
            self._read += filter(None, [read_bandwidth(self._n_threads, _CEILING_S)])
            self._int8 += filter(None, [int8_ops(self._kernels.name, self._n_threads, _CEILING_S)])


def _chosen(workloads: Sequence[Workload], only: Sequence[str]) -> list[Workload]:
    for part in only:
        if not any(part in workload.name for workload in workloads):
            names = ", ".join(workload.name for workload in workloads)
            raise UsageError(f"Expected part of one of the names {names}, but {part[:40]!r} is none; choose another.")
    return [workload for workload in workloads if not only or any(part in workload.name for part in only)]
