"""Measures how fast a decoder runs here: our kernels and llama.cpp's own in turn, beside the machine's ceilings.

Both sides are measured in the same run, one right after the other, in every round: a machine's speed changes with its
temperature and with its other work. This module prints nothing.
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

__all__ = ["ON", "BenchOptions", "Benchmark", "Measurement", "StepReport", "measure"]

ON = "on"
_CEILING_S = 0.3
_ON_CPU = Placement()
_CUDA_DEVICE = re.compile(r"CUDA(\d+)")
_F16_BYTES, _F32_BYTES = 2, 4
# vectors of the model's width that the graph of one token holds at once, about
_VECTORS = 16

# called with the steps done, all steps, and the name of the next one
StepReport = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BenchOptions:
    """How a benchmark is taken.

    Attributes:
        rounds: How often each measurement is taken, 1 or more.
        n_threads: Threads of the matmuls and of the image encoder.
        kernels: What `on` means, one of `kernels.CHOICES` except `off`.
        only: Parts of the names of workloads to measure; empty for all workloads.
        placement: Which layers of the decoder go to which device; by default the CPU computes all of them.
        vision_device: Device of the image encoder, see `vision.VisionEncoder`.
    """

    rounds: int
    n_threads: int
    kernels: str
    only: Sequence[str] = ()
    placement: Placement = _ON_CPU
    vision_device: str = "cpu"


@dataclass(frozen=True)
class Measurement:
    """How long one workload took.

    Attributes:
        workload: The work.
        seconds: Seconds of each round, by `on` and `off`; empty for a side that could not be measured.
    """

    workload: Workload
    seconds: Mapping[str, Sequence[float]]

    def median_s(self, side: str) -> float | None:
        """Return the median seconds of `on` or `off`; None if that side was not measured."""
        return statistics.median(self.seconds[side]) if self.seconds[side] else None

    def rate(self, side: str) -> float | None:
        """Return tokens per second of `on` or `off`; None without a measurement, and for work on images."""
        seconds, n_tokens = self.median_s(side), self.workload.n_tokens
        return None if seconds is None or n_tokens is None else n_tokens / seconds

    @property
    def ratio(self) -> float | None:
        """Return the speed of `on` divided by that of `off`; None if one of them was not measured."""
        on, off = self.median_s(ON), self.median_s(OFF)
        return None if on is None or off is None else off / on


@dataclass(frozen=True)
class Benchmark:
    """The result of `measure`.

    Attributes:
        measurements: One for each workload, in the order in which they were taken.
        kernels: The kernels that `on` stands for, and why.
        rounds: How often each measurement was taken.
        n_threads: Threads of the matmuls.
        both_loaded: Whether both sides were loaded together and took turns at each workload; otherwise each round
            loaded one after the other.
        read_bytes_per_s: Ceiling of memory: bytes that all threads read per second; None where it was not measured.
        card_bytes_per_s: Ceiling of the one CUDA device that holds all layers: bytes read and written per second;
            None without such a device, or where it was not measured.
        int8_ops_per_s: Ceiling of the processor: multiplications and additions of int8 values in registers, by all
            threads, per second; None where it was not measured.
        load_s: Seconds to open the decoder the first time, by `on` and `off`.
        placement: Which layers went to which device.
        vision_device: Device of the image encoder; None without one.
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
        """Return which ceiling limits a measurement: `read`, `card` or `int8`; None where that is not known."""
        ceiling, n_gpu_layers = measurement.workload.ceiling, self.placement.n_gpu_layers
        if n_gpu_layers == 0 or ceiling is None:
            return ceiling
        # with layers on both the CPU and a card, or products on a card, no single ceiling is measured
        return "card" if ceiling == "read" and self.card_bytes_per_s is not None else None

    def share(self, measurement: Measurement, side: str) -> float | None:
        """Return which share of its ceiling a measurement reaches, 1 being all of it; None where it is not known."""
        ceilings = {"read": self.read_bytes_per_s, "card": self.card_bytes_per_s, "int8": self.int8_ops_per_s}
        work, seconds, limit = measurement.workload, measurement.median_s(side), self.ceiling_of(measurement)
        ceiling = None if limit is None else ceilings[limit]
        return None if ceiling is None or seconds is None else work.work / seconds / ceiling


def measure(subject: Subject, options: BenchOptions, cancel: Cancel, report: StepReport) -> Benchmark:
    """Measure a decoder with and without our kernels.

    Args:
        subject: The decoder, and the image encoder if there is one.
        options: How the benchmark is taken.
        cancel: Stops the benchmark at the next operation.
        report: Called before each step.

    Raises:
        UsageError: A part in `options.only` occurs in no workload's name.
        Aborted: `cancel` was set.
        HardwareError: The model does not fit into this machine's memory, or the kernels cannot be used.
        DecoderError, VisionError: An engine refuses the model.
    """
    return _Run(subject, options, cancel, report).measure()


class _Run:
    """One benchmark."""

    def __init__(self, subject: Subject, options: BenchOptions, cancel: Cancel, report: StepReport) -> None:
        self._subject = subject
        self._rounds = options.rounds
        self._n_threads = options.n_threads
        self._placement = options.placement
        self._vision_device = options.vision_device
        self._choices = {OFF: OFF, ON: options.kernels}
        self._report = report
        self._workloads = Workloads(subject, cancel)
        self._chosen = _chosen(self._workloads.all(), options.only)
        self._seconds: list[dict[str, list[float]]] = [{OFF: [], ON: []} for _ in self._chosen]
        self._kernels: Kernels | None = None
        self._load_s: dict[str, float] = {}
        self._read: list[float] = []
        self._int8: list[float] = []
        self._n_done, self._n_steps = 0, options.rounds * len(self._chosen) * len(self._choices)
        self._vision: VisionEncoder | None = None

    def measure(self) -> Benchmark:
        both = self._fits_twice()
        self._open_vision()
        if both:
            self._measure_in_turn()
        else:
            self._measure_one_by_one()
        assert self._kernels is not None, "both sides were opened"
        return Benchmark(
            measurements=[Measurement(*pair) for pair in zip(self._chosen, self._seconds, strict=True)],
            kernels=self._kernels,
            rounds=self._rounds,
            n_threads=self._n_threads,
            both_loaded=both,
            read_bytes_per_s=statistics.median(self._read) if self._read else None,
            int8_ops_per_s=statistics.median(self._int8) if self._int8 else None,
            load_s=self._load_s,
            card_bytes_per_s=self._card_bandwidth(),
            placement=self._placement,
            vision_device=None if self._vision is None else self._vision.device,
        )

    def _measure_in_turn(self) -> None:
        with self._open(OFF) as off, self._open(ON) as on:
            for index in range(self._rounds):
                # the sides swap places each round, so that neither gains from what the other leaves in the caches
                self._take([off, on] if index % 2 == 0 else [on, off])

    def _measure_one_by_one(self) -> None:
        for _ in range(self._rounds):
            for name in self._choices:
                with self._open(name) as side:
                    self._take([side])

    def _card_bandwidth(self) -> float | None:
        """Return the bandwidth of the one CUDA device that holds all layers, the output layer included."""
        placement = self._placement
        if placement.n_gpu_layers <= self._subject.spec.n_layer or len(placement.devices) != 1:
            return None
        match = _CUDA_DEVICE.fullmatch(placement.devices[0])
        return None if match is None else copy_bandwidth(int(match[1]))

    def _fits_twice(self) -> bool:
        """Return whether memory holds the decoder twice: as it is in the file, and as llama.cpp rearranges it."""
        spec, bundle = self._subject.spec, self._subject.bundle
        cache = 2 * spec.n_layer * spec.n_head_kv * spec.head_dim * _F16_BYTES * N_CTX
        buffers = N_BATCH * (spec.n_vocab + _VECTORS * spec.n_embd) * _F32_BYTES
        vision = 0 if bundle is None else bundle.manifest.files["vision"].size_bytes
        once = self._subject.weights.file_bytes + cache + buffers + vision
        machine = inspect_machine()
        if machine.memory_bytes is not None and once > machine.memory_bytes:
            raise HardwareError(
                f"The benchmark needs {once / 1e9:.1f} GB of memory, and this machine has "
                f"{machine.memory_bytes / 1e9:.1f} GB. Choose a smaller model or a smaller type."
            )
        # the plan of a card has room for one decoder
        on_cpu = self._placement.n_gpu_layers == 0
        return on_cpu and machine.available_bytes is not None and 2 * once < machine.available_bytes

    def _open_vision(self) -> None:
        if (bundle := self._subject.bundle) is not None:
            self._vision = VisionEncoder(
                EncoderFile.of(bundle),
                self._n_threads,
                device=self._vision_device,
                kernels=self._choices[ON],
            )

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[Side | None]:
        """Load a side; yield None where `on` has no kernels on this processor, and so would repeat `off`."""
        if name == ON and self._kernels is not None and self._kernels.name is None:
            yield None
            return
        self._report(self._n_done, self._n_steps, f"loading, kernels {name}")
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
        """Run each workload once with each side, one right after the other; then measure the machine's ceilings."""
        for workload, seconds in zip(self._chosen, self._seconds, strict=True):
            for side in sides:
                if side is not None:
                    self._report(self._n_done, self._n_steps, f"{workload.name}, kernels {side.name}")
                    open_kernels(side.choice)
                    taken = workload.take(side)
                    # a cancelled answer ends early without an error, and must not count
                    self._workloads.stop_if_asked()
                    seconds[side.name].append(taken)
                self._n_done += 1
        if self._kernels is not None and self._kernels.name is not None:
            self._report(self._n_done, self._n_steps, "the machine's ceilings")
            self._read += filter(None, [read_bandwidth(self._n_threads, _CEILING_S)])
            self._int8 += filter(None, [int8_ops(self._kernels.name, self._n_threads, _CEILING_S)])


def _chosen(workloads: Sequence[Workload], only: Sequence[str]) -> list[Workload]:
    for part in only:
        if not any(part in workload.name for workload in workloads):
            names = ", ".join(workload.name for workload in workloads)
            raise UsageError(f"No measurement has {part[:40]!r} in its name. The names are: {names}.")
    return [workload for workload in workloads if not only or any(part in workload.name for part in only)]
