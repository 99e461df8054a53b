"""Decides what goes where: how many layers a GPU takes, how the KV cache is stored, how long the context is.

`plan` is a function of facts alone: the model's sizes (`memory`), what the devices have free (`hardware`), and the
user's request. It returns the plan with the most layers on GPUs in which every device keeps its target free. Where
there is none, the error says why and names the nearest plans. It never gives less than the user asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bimedix_edge.decoder.placement import KV_TYPES, Placement
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.hardware.advice import decoder_gpu
from bimedix_edge.hardware.facts import ComputeDevice, Hardware
from bimedix_edge.planning.memory import (
    DecoderFacts,
    HostNeed,
    LlamaBuild,
    Load,
    device_need,
    host_need,
    layers_need,
    n_cells,
)
from bimedix_edge.planning.words import PlanWarning

__all__ = ["ALL", "AUTO", "DeviceUse", "PlacementRequest", "Plan", "Speed", "VisionFacts", "plan"]

AUTO, ALL = "auto", "all"
# BiMediX2 was trained with the first; the last holds an image, a question and an answer
_CONTEXTS = (4096, 2048, 1024)
_N_BATCH = 512
# tried in this order: the first is exact, the second loses little
_KV_TYPES = ("f16", "q8_0")
_BISECTIONS = 12
_MIB = 1 << 20

Speed = Literal["gpu", "mixed", "cpu"]
_SPEEDS: dict[Speed, str] = {
    "gpu": "a GPU's speed",
    "mixed": "the CPU's part sets the pace",
    "cpu": "the CPU's speed",
}


@dataclass(frozen=True)
class PlacementRequest:
    """The user's constraints on a plan.

    Attributes:
        gpu_layers: Number of layers to offload, `all`, or `auto`: as many as fit.
        ctx_size: Context length in tokens, or `auto`: 4096, as BiMediX2 was trained, or less where memory is short.
        kv_type: Type of the KV cache, one of `KV_TYPES`, or `auto`: f16, and q8_0 where that offloads more layers.
        kv_placement: `gpu` keeps the KV cache of a layer where the layer is; `cpu` keeps it in the machine's memory.
            `auto` is `gpu`: reading the cache from the machine's memory costs more than the layers gain that would fit
            instead.
        target_bytes: Memory to leave free on each device.
        devices: Names of the devices that may be used; empty allows all.
        long_context: Whether the context may be longer than the one the model was trained with.
        n_seq_max: Maximum number of sequences in the KV cache at once.
    """

    gpu_layers: int | str = AUTO
    ctx_size: int | str = AUTO
    kv_type: str = AUTO
    kv_placement: str = AUTO
    target_bytes: int = 1024 * _MIB
    devices: tuple[str, ...] = ()
    long_context: bool = False
    n_seq_max: int = 8


@dataclass(frozen=True)
class VisionFacts:
    """Where the image encoder computes, and the memory it takes there.

    Attributes:
        host_bytes: Bytes in the machine's memory.
        device: Name of the device that computes it, as ggml names it; None is the CPU.
        device_bytes: Bytes in that device's memory.
    """

    host_bytes: int
    device: str | None = None
    device_bytes: int = 0


@dataclass(frozen=True)
class DeviceUse:
    """What a plan puts on one device.

    Attributes:
        name: Name of the device, as ggml names it.
        n_layers: Number of layers on it.
        need_bytes: Bytes that they take, and the image encoder if it computes there.
        free_bytes: Bytes that were free before.
        shared: Whether its memory is the machine's own.
    """

    name: str
    n_layers: int
    need_bytes: int
    free_bytes: int
    shared: bool


@dataclass(frozen=True)
class Plan:
    """Where a model's layers, KV cache and memory go.

    Attributes:
        load: Context, batch and sequences.
        placement: Place of each layer and of the KV cache.
        host: Bytes that the machine's memory must hold.
        devices: Devices in use.
        speed: Hardware that sets the speed of an answer.
        line: The plan in one line of text.
        warnings: What to know before the model runs by it.
    """

    load: Load
    placement: Placement
    host: HostNeed
    devices: tuple[DeviceUse, ...]
    speed: Speed
    line: str
    warnings: tuple[PlanWarning, ...]


def plan(
    facts: DecoderFacts, hardware: Hardware, request: PlacementRequest, vision: VisionFacts, build: LlamaBuild
) -> Plan:
    """Decide what goes where.

    Args:
        facts: Sizes of the decoder.
        hardware: Memory and devices of this machine.
        request: The user's constraints.
        vision: The image encoder, whose place is decided before.
        build: The installed llama.cpp, and whether our kernels compute the layers on the CPU.

    Raises:
        UsageError: The request has more layers than the model, a context longer than trained, or a device that does not
            exist.
        HardwareError: There is no GPU, or the model does not fit. The message names the nearest plans that would.
    """
    return _Planner(facts, hardware, request, vision, build).plan()


@dataclass
class _Planner:
    """One decision; the arguments are those of `plan`."""

    facts: DecoderFacts
    hardware: Hardware
    request: PlacementRequest
    vision: VisionFacts
    build: LlamaBuild

    def __post_init__(self) -> None:
        self.gpus = _gpus(self.hardware, self.request.devices)
        self.n_wanted = _wanted_layers(self.facts, self.request)

    def plan(self) -> Plan:
        warnings = _context_warnings(self.facts, self.request)
        if self.n_wanted and not self.gpus:
            raise HardwareError(
                f"There is no GPU for --gpu-layers {self.request.gpu_layers}: {self._missing()}"
                "--gpu-layers 0 stays on the CPU."
            )
        best = self._best()
        if best is None:
            raise HardwareError(self._does_not_fit())
        available = self.hardware.machine.available_bytes
        if available is not None and best.host.total > available:
            warnings.append(
                PlanWarning(
                    "memory_short",
                    {"need_gb": round(best.host.total / 1e9, 1), "free_gb": round(available / 1e9, 1)},
                )
            )
        return replace(best, warnings=tuple(warnings))

    def _best(self) -> Plan | None:
        """Return the plan with the most layers on GPUs; of equal ones, the first tried."""
        best: Plan | None = None
        for load, kv_type in self._choices():
            found = self._plan_for(load, kv_type)
            if found is not None and (best is None or found.placement.n_gpu_layers > best.placement.n_gpu_layers):
                best = found
            # a context is never shortened to offload more layers
            if best is not None and (kv_type == self._kv_types()[-1] or self._all_offloaded(best)):
                break
        return best

    def _all_offloaded(self, found: Plan) -> bool:
        wanted = self.facts.n_layer if self.n_wanted is None else self.n_wanted
        return not self.gpus or found.placement.n_gpu_layers == wanted

    def _kv_types(self) -> Sequence[str]:
        return _KV_TYPES if self.request.kv_type == AUTO else (self.request.kv_type,)

    def _choices(self) -> Iterator[tuple[Load, str]]:
        """Yield the contexts and KV types to try, the best first."""
        trained = self.facts.spec.n_ctx_train
        if self.request.ctx_size == AUTO:
            contexts = list(dict.fromkeys(min(n_ctx, trained) for n_ctx in _CONTEXTS))
        else:
            contexts = [int(self.request.ctx_size)]
        for n_ctx in contexts:
            for kv_type in self._kv_types():
                yield Load(n_ctx, min(_N_BATCH, n_ctx), self.request.n_seq_max), kv_type

    def _plan_for(self, load: Load, kv_type: str) -> Plan | None:
        """Return the plan with the most layers on GPUs, or with as many as requested; None if there is none."""
        least = 0 if self.n_wanted is None else self.n_wanted
        most = self.facts.n_layer if self.n_wanted is None else self.n_wanted
        for n in range(most if self.gpus else 0, least - 1, -1):
            if (found := self._with_layers(load, kv_type, n)) is not None:
                return found
        return None

    def _with_layers(self, load: Load, kv_type: str, n: int) -> Plan | None:
        """Return a plan with `n` layers on GPUs, split by their free memory; None if it does not fit."""
        base = Placement(
            n_gpu_layers=n,
            kv_type=kv_type,
            kv_on_gpu=self.request.kv_placement != "cpu",
            # llama.cpp offers a GPU only the products of its own CPU backend, and our kernels take those before it
            prefill_on_gpu=not self.build.kernels,
        )
        placement = self._split_by_memory(load, base)
        if placement is None:
            return None
        host = self._host(load, placement)
        uses = tuple(self._uses(load, placement))
        shared = sum(use.need_bytes for use in uses if use.shared)
        memory = self.hardware.machine.memory_bytes
        if memory is not None and host.total + shared > memory:
            return None
        speed: Speed = "cpu" if n == 0 else "gpu" if n == self.facts.n_layer and placement.kv_on_gpu else "mixed"
        return Plan(load, placement, host, uses, speed, self._line(load, placement, uses, speed), ())

    def _host(self, load: Load, placement: Placement) -> HostNeed:
        return host_need(self.facts, load, placement, self.build, vision_bytes=self.vision.host_bytes)

    def _split_by_memory(self, load: Load, base: Placement) -> Placement | None:
        """Split layers so that each device is filled to the same fraction of its room; None if they do not fit."""
        if base.n_gpu_layers == 0:
            return replace(base, devices=(), split=()) if self._vision_fits() else None
        if (best := self._filled(load, base, 1.0)) is None:
            return None
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS if len(self.gpus) > 1 else 0):
            middle = (low + high) / 2
            if (found := self._filled(load, base, middle)) is None:
                low = middle
            else:
                best, high = found, middle
        return best

    def _filled(self, load: Load, base: Placement, fraction: float) -> Placement | None:
        """Fill devices from the last layer backwards, each up to a fraction of its room.

        Each device takes one run of adjacent layers. If any split fits, the greedy one does, in which each device, from
        the last on, takes all it can.
        """
        end, split = self.facts.n_layer, [0] * len(self.gpus)
        first = end - base.n_gpu_layers
        for index in reversed(range(len(self.gpus))):
            limit = int(self._room(self.gpus[index]) * fraction)
            start = end
            while start > first and layers_need(self.facts, load, base, range(start - 1, end)) <= limit:
                start -= 1
            split[index], end = end - start, start
        if end > first or not self._vision_fits():
            return None
        used = [(gpu.name, n) for gpu, n in zip(self.gpus, split, strict=True) if n]
        return replace(base, devices=tuple(name for name, _ in used), split=tuple(n for _, n in used))

    def _room(self, gpu: ComputeDevice) -> int:
        return gpu.free_bytes - self.request.target_bytes - self._vision_on(gpu)

    def _vision_on(self, gpu: ComputeDevice) -> int:
        return self.vision.device_bytes if gpu.name == self.vision.device else 0

    def _vision_fits(self) -> bool:
        return all(self._room(gpu) >= 0 for gpu in self.gpus if self._vision_on(gpu))

    def _uses(self, load: Load, placement: Placement) -> Iterator[DeviceUse]:
        for gpu in self.gpus:
            n, need = 0, self._vision_on(gpu)
            if gpu.name in placement.devices:
                index = placement.devices.index(gpu.name)
                n, need = placement.split[index], need + device_need(self.facts, load, placement, index)
            if need:
                yield DeviceUse(gpu.name, n, need, gpu.free_bytes, _is_shared(gpu))

    def _line(self, load: Load, placement: Placement, uses: Sequence[DeviceUse], speed: Speed) -> str:
        context = f"{load.n_ctx} tokens of context in {placement.kv_type}"
        if not placement.n_gpu_layers:
            return f"CPU: {self._why_cpu(load, placement)}; {context}"
        places = ", ".join(
            f"{use.n_layers} on {use.name} ({_gb(use.need_bytes)} of {_gb(use.free_bytes)} free)"
            for use in uses
            if use.n_layers
        )
        rest = self.facts.n_layer - placement.n_gpu_layers
        kept = f", {rest} on the CPU" if rest else ""
        where = "" if placement.kv_on_gpu else " in the machine's memory"
        return f"GPU: of {self.facts.n_layer} layers {places}{kept}; {context}{where}; {_SPEEDS[speed]}"

    def _why_cpu(self, load: Load, placement: Placement) -> str:
        if self.request.gpu_layers == 0:
            return "as asked"
        if not self.gpus:
            return self._no_gpu()
        last = range(self.facts.n_layer - 1, self.facts.n_layer)
        layer = layers_need(self.facts, load, replace(placement, n_gpu_layers=1), last)
        rooms = ", ".join(f"{gpu.name} has {_gb(max(0, self._room(gpu)))}" for gpu in self.gpus)
        return f"{rooms} beside the {self.request.target_bytes // _MIB} MiB kept free, and one layer takes {_gb(layer)}"

    def _no_gpu(self) -> str:
        """Return why there is no GPU, in words."""
        backends = [backend.name for backend in self.hardware.backends if backend.name not in ("CPU", "bimedix-edge")]
        if not backends:
            return "no GPU backend in llama.cpp"
        faults = "; ".join(self.hardware.backend_faults)
        return f"llama.cpp's {' and '.join(backends)} found no device" + (f" ({faults})" if faults else "")

    def _missing(self) -> str:
        """Return why there is no GPU and what to do about it, as the part of a sentence up to a semicolon."""
        missing = decoder_gpu(self.hardware, self.build.version)
        if missing is None or missing.remedy is None:
            return f"{self._no_gpu() if missing is None else missing.cause}; "
        return f"{missing.cause}; {missing.remedy}; "

    def _does_not_fit(self) -> str:
        """Return an error's message: what is missing, and the nearest plans."""
        load, kv_type = next(self._choices())
        n = self.n_wanted or 0
        if n:
            free = ", ".join(f"{gpu.name} has {_gb(gpu.free_bytes)}" for gpu in self.gpus)
            fault = (
                f"{n} of {self.facts.n_layer} layers with {load.n_ctx} tokens of context do not fit: {free} free, of "
                f"which {self.request.target_bytes // _MIB} MiB must stay free"
            )
        else:
            host = self._host(load, Placement(n_gpu_layers=0, kv_type=kv_type))
            fault = (
                f"The model needs {_gb(host.total)} of memory (weights {_gb(host.weights)}, context of {load.n_ctx} "
                f"tokens {_gb(host.kv)}, vision {_gb(host.vision)}), and this machine has "
                f"{_gb(self.hardware.machine.memory_bytes or 0)}"
            )
        nearest = list(dict.fromkeys(self._nearest()))
        advice = f"This would fit: {', or '.join(nearest)}" if nearest else "Choose a smaller model or a smaller type"
        return f"{fault}. {advice}."

    def _nearest(self) -> Iterator[str]:
        """Yield requests that fit, as options of the command line, one change at a time."""
        load, _ = next(self._choices())
        request = self.request
        if self.n_wanted:
            fewer = self._try(replace(request, gpu_layers=AUTO))
            if fewer is not None:
                yield f"--gpu-layers {fewer.placement.n_gpu_layers}"
        for kv_type in _KV_TYPES:
            if KV_TYPES[kv_type][0] / KV_TYPES[kv_type][1] < 2 and self._try(replace(request, kv_type=kv_type)):
                yield f"--kv-type {kv_type}"
        for n_ctx in range(n_cells(load.n_ctx) - 256, 255, -256):
            if self._try(replace(request, ctx_size=n_ctx)):
                yield f"--ctx-size {n_ctx}"
                return

    def _try(self, request: PlacementRequest) -> Plan | None:
        return replace(self, request=request)._best()


def _gpus(hardware: Hardware, names: Sequence[str]) -> list[ComputeDevice]:
    """Return the devices that may be used: the named ones, else graphics cards, else GPUs that share the memory."""
    here = [device for device in hardware.devices if device.kind in ("gpu", "igpu")]
    for name in names:
        if name not in [device.name for device in here]:
            known = ", ".join(device.name for device in here) or "none"
            raise UsageError(f"There is no device {name[:40]!r}. Name one that exists: {known}.")
    if names:
        return [device for device in here if device.name in names]
    cards = [device for device in here if device.kind == "gpu"]
    return cards or here


def _wanted_layers(facts: DecoderFacts, request: PlacementRequest) -> int | None:
    """Return how many layers to offload; None for as many as fit."""
    if request.gpu_layers == AUTO:
        return None
    if request.gpu_layers == ALL:
        return facts.n_layer
    n = int(request.gpu_layers)
    if n > facts.n_layer:
        raise UsageError(
            f"--gpu-layers {n} is too many: this model has {facts.n_layer} layers, the output layer included. "
            "Choose fewer, or all."
        )
    return n


def _context_warnings(facts: DecoderFacts, request: PlacementRequest) -> list[PlanWarning]:
    trained = facts.spec.n_ctx_train
    if request.ctx_size == AUTO or int(request.ctx_size) <= trained:
        return []
    if not request.long_context:
        raise UsageError(
            f"--ctx-size {request.ctx_size} is too long: the model was trained with {trained} tokens of context. "
            "Choose a smaller one, or add --allow-long-context."
        )
    return [PlanWarning("long_context", {"ctx_size": int(request.ctx_size), "trained": trained})]


def _is_shared(device: ComputeDevice) -> bool:
    """Return whether a device's memory is the machine's own, as on Apple's chips and in integrated graphics."""
    return device.kind == "igpu" or device.backend in ("Metal", "MTL")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
