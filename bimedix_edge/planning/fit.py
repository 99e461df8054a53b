"""What goes where: how many layers a GPU takes, how keys and values are stored, how long the context is.

`plan` is a function of facts alone: what the model takes (`memory`), what the devices have free (`hardware`), and what
the user wishes. It gives the plan with the most layers on GPUs in which every device keeps its target free, or says why
there is none and which plans come nearest. It never takes less than what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bimedix_edge.decoder.placement import KV_TYPES, Placement
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.hardware.advice import decoder_gpu
from bimedix_edge.hardware.facts import ComputeDevice, Hardware
from bimedix_edge.planning.memory import DecoderFacts, HostNeed, Load, device_need, host_need, layers_need, n_cells
from bimedix_edge.planning.words import PlanWarning

__all__ = ["ALL", "AUTO", "DeviceUse", "Plan", "Speed", "VisionFacts", "Wishes", "plan"]

AUTO, ALL = "auto", "all"
# BiMediX2 was trained with the first; the last holds an image, a question and an answer
_CONTEXTS = (4096, 2048, 1024)
_N_BATCH = 512
# what is tried in turn: the first is exact, the second loses little
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
class Wishes:
    """What the user asks for.

    Attributes:
        gpu_layers: how many layers leave the CPU, `all`, or `auto`: as many as fit.
        ctx_size: tokens of context, or `auto`: 4096, which BiMediX2 was trained with, less where memory is short.
        kv_type: of keys and values, one of `KV_TYPES`, or `auto`: f16, and q8_0 where that moves more layers.
        kv_placement: `gpu`, each layer's lie where it does; `cpu`, in the machine's memory; or `auto`, which is `gpu`:
            reading them from there costs more than the layers that would find room instead.
        target_bytes: kept free on each device.
        devices: names of those that may be used; all where it is empty.
        long_context: whether the context may be longer than the model was trained with.
        n_seq_max: sequences that can be alive at once.
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
    """Where the image encoder computes, and what it takes there.

    Attributes:
        host_bytes: in the machine's memory.
        device: ggml's name of the device on which it computes; None is the CPU.
        device_bytes: in that device's memory.
    """

    host_bytes: int
    device: str | None = None
    device_bytes: int = 0


@dataclass(frozen=True)
class DeviceUse:
    """What a plan does with one device.

    Attributes:
        name: ggml's.
        n_layers: that go there.
        need_bytes: what they take, and the image encoder where it computes there.
        free_bytes: what is free before.
        shared: whether it is the machine's own memory.
    """

    name: str
    n_layers: int
    need_bytes: int
    free_bytes: int
    shared: bool


@dataclass(frozen=True)
class Plan:
    """How a model runs.

    Attributes:
        load: the context, and what is evaluated at once.
        placement: what goes where.
        host: what the machine's memory must hold.
        devices: those that are used.
        speed: what the speed of an answer depends on.
        line: all of it in one line.
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
    facts: DecoderFacts,
    hardware: Hardware,
    wishes: Wishes,
    vision: VisionFacts,
    *,
    version: str,
    kernels: bool,
    repacks: bool = False,
) -> Plan:
    """Decide what goes where.

    Args:
        facts: of the decoder.
        hardware: what is here.
        wishes: what the user asks for.
        vision: the image encoder, whose place is decided before.
        version: of llama-cpp-python, for the command that would add a GPU.
        kernels: whether our kernels compute what stays with the CPU.
        repacks: whether llama.cpp keeps rearranged copies of weights otherwise.

    Raises:
        UsageError: more layers than there are, a context longer than trained, or a device that does not exist.
        HardwareError: there is no GPU, or it does not fit; the message names the nearest plans that would.
    """
    return _Planner(facts, hardware, wishes, vision, version, kernels, repacks).plan()


@dataclass
class _Planner:
    """One decision; the arguments are those of `plan`."""

    facts: DecoderFacts
    hardware: Hardware
    wishes: Wishes
    vision: VisionFacts
    version: str
    kernels: bool
    repacks: bool

    def __post_init__(self) -> None:
        self.gpus = _gpus(self.hardware, self.wishes.devices)
        self.n_wanted = _wanted_layers(self.facts, self.wishes)

    def plan(self) -> Plan:
        warnings = _context_warnings(self.facts, self.wishes)
        if self.n_wanted and not self.gpus:
            raise HardwareError(
                f"Expected a GPU for --gpu-layers {self.wishes.gpu_layers}, but {self._missing()}"
                "--gpu-layers 0 stays with the CPU."
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
        """Return the plan with the most layers on GPUs, of these the first that is tried."""
        best: Plan | None = None
        for load, kv_type in self._choices():
            found = self._plan_for(load, kv_type)
            if found is not None and (best is None or found.placement.n_gpu_layers > best.placement.n_gpu_layers):
                best = found
            # a shorter context is no means to move more layers
            if best is not None and (kv_type == self._kv_types()[-1] or self._all_moved(best)):
                break
        return best

    def _all_moved(self, found: Plan) -> bool:
        wanted = self.facts.n_layer if self.n_wanted is None else self.n_wanted
        return not self.gpus or found.placement.n_gpu_layers == wanted

    def _kv_types(self) -> Sequence[str]:
        return _KV_TYPES if self.wishes.kv_type == AUTO else (self.wishes.kv_type,)

    def _choices(self) -> Iterator[tuple[Load, str]]:
        """Yield what is tried, the best first."""
        trained = self.facts.spec.n_ctx_train
        if self.wishes.ctx_size == AUTO:
            contexts = list(dict.fromkeys(min(n_ctx, trained) for n_ctx in _CONTEXTS))
        else:
            contexts = [int(self.wishes.ctx_size)]
        for n_ctx in contexts:
            for kv_type in self._kv_types():
                yield Load(n_ctx, min(_N_BATCH, n_ctx), self.wishes.n_seq_max), kv_type

    def _plan_for(self, load: Load, kv_type: str) -> Plan | None:
        """Return the plan with the most layers on GPUs, or with as many as wished; None if there is none."""
        least = 0 if self.n_wanted is None else self.n_wanted
        most = self.facts.n_layer if self.n_wanted is None else self.n_wanted
        for n in range(most if self.gpus else 0, least - 1, -1):
            if (found := self._with_layers(load, kv_type, n)) is not None:
                return found
        return None

    def _with_layers(self, load: Load, kv_type: str, n: int) -> Plan | None:
        """Return a plan with `n` layers on GPUs, shared out by what is free there; None if it does not fit."""
        base = Placement(
            n_gpu_layers=n,
            kv_type=kv_type,
            kv_on_gpu=self.wishes.kv_placement != "cpu",
            # our kernels come first: llama.cpp offers to a GPU only what would be its own CPU backend's
            prefill_on_gpu=not self.kernels,
        )
        placement = self._share_out(load, base)
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
        kernels, vision_bytes = self.kernels, self.vision.host_bytes
        return host_need(self.facts, load, placement, kernels=kernels, repacks=self.repacks, vision_bytes=vision_bytes)

    def _share_out(self, load: Load, base: Placement) -> Placement | None:
        """Give layers to devices so that each is filled to the same part of what it has; None if they do not fit."""
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

    def _filled(self, load: Load, base: Placement, part: float) -> Placement | None:
        """Fill devices from the last layer on, each up to a part of what it has.

        Layers are in one row, cut into one piece a device: if any cuts fit, those do in which each device, from the
        last on, takes all it can.
        """
        end, split = self.facts.n_layer, [0] * len(self.gpus)
        first = end - base.n_gpu_layers
        for index in reversed(range(len(self.gpus))):
            limit = int(self._room(self.gpus[index]) * part)
            start = end
            while start > first and layers_need(self.facts, load, base, range(start - 1, end)) <= limit:
                start -= 1
            split[index], end = end - start, start
        if end > first or not self._vision_fits():
            return None
        used = [(gpu.name, n) for gpu, n in zip(self.gpus, split, strict=True) if n]
        return replace(base, devices=tuple(name for name, _ in used), split=tuple(n for _, n in used))

    def _room(self, gpu: ComputeDevice) -> int:
        return gpu.free_bytes - self.wishes.target_bytes - self._vision_on(gpu)

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
        if self.wishes.gpu_layers == 0:
            return "as asked"
        if not self.gpus:
            return self._no_gpu()
        last = range(self.facts.n_layer - 1, self.facts.n_layer)
        layer = layers_need(self.facts, load, replace(placement, n_gpu_layers=1), last)
        rooms = ", ".join(f"{gpu.name} has {_gb(max(0, self._room(gpu)))}" for gpu in self.gpus)
        return f"{rooms} beside the {self.wishes.target_bytes // _MIB} MiB kept free, and one layer takes {_gb(layer)}"

    def _no_gpu(self) -> str:
        """Say why there is no GPU."""
        backends = [backend.name for backend in self.hardware.backends if backend.name not in ("CPU", "bimedix-edge")]
        if not backends:
            return "no GPU backend in llama.cpp"
        faults = "; ".join(self.hardware.backend_faults)
        return f"llama.cpp's {' and '.join(backends)} found no device" + (f" ({faults})" if faults else "")

    def _missing(self) -> str:
        """Say the same with what to do about it, up to a semicolon."""
        missing = decoder_gpu(self.hardware, self.version)
        if missing is None or missing.remedy is None:
            return f"{self._no_gpu() if missing is None else missing.cause}; "
        return f"{missing.cause}; {missing.remedy}; "

    def _does_not_fit(self) -> str:
        """Say what is missing, and which plans come nearest."""
        load, kv_type = next(self._choices())
        n = self.n_wanted or 0
        placement = Placement(n_gpu_layers=0, kv_type=kv_type)
        host = self._host(load, placement)
        if n:
            free = ", ".join(f"{gpu.name} {_gb(gpu.free_bytes)}" for gpu in self.gpus)
            given = f"free are {free}, of which {self.wishes.target_bytes // _MIB} MiB stay free"
            expected = f"room for {n} of {self.facts.n_layer} layers and {load.n_ctx} tokens of context"
        else:
            memory = self.hardware.machine.memory_bytes or 0
            given = f"this machine has {_gb(memory)}"
            expected = (
                f"memory for {_gb(host.total)} (weights {_gb(host.weights)}, context of {load.n_ctx} tokens "
                f"{_gb(host.kv)}, vision {_gb(host.vision)})"
            )
        nearest = list(dict.fromkeys(self._nearest()))
        advice = f"what would fit: {', or '.join(nearest)}" if nearest else "choose a smaller model or a smaller type"
        return f"Expected {expected}, but {given}; {advice}."

    def _nearest(self) -> Iterator[str]:
        """Yield what the user could ask for instead, one change at a time."""
        load, _ = next(self._choices())
        wishes = self.wishes
        if self.n_wanted:
            fewer = self._try(replace(wishes, gpu_layers=AUTO))
            if fewer is not None:
                yield f"--gpu-layers {fewer.placement.n_gpu_layers}"
        for kv_type in _KV_TYPES:
            if KV_TYPES[kv_type][0] / KV_TYPES[kv_type][1] < 2 and self._try(replace(wishes, kv_type=kv_type)):
                yield f"--kv-type {kv_type}"
        for n_ctx in range(n_cells(load.n_ctx) - 256, 255, -256):
            if self._try(replace(wishes, ctx_size=n_ctx)):
                yield f"--ctx-size {n_ctx}"
                return

    def _try(self, wishes: Wishes) -> Plan | None:
        return replace(self, wishes=wishes)._best()


def _gpus(hardware: Hardware, names: Sequence[str]) -> list[ComputeDevice]:
    """Return the devices that may be used: those named, else graphics cards, else what shares the machine's memory."""
    here = [device for device in hardware.devices if device.kind in ("gpu", "igpu")]
    for name in names:
        if name not in [device.name for device in here]:
            known = ", ".join(device.name for device in here) or "none"
            raise UsageError(
                f"Expected a device among those that exist ({known}), but {name[:40]!r} is none; name one."
            )
    if names:
        return [device for device in here if device.name in names]
    cards = [device for device in here if device.kind == "gpu"]
    return cards or here


def _wanted_layers(facts: DecoderFacts, wishes: Wishes) -> int | None:
    """Return how many layers must leave the CPU; None where as many do as fit."""
    if wishes.gpu_layers == AUTO:
        return None
    if wishes.gpu_layers == ALL:
        return facts.n_layer
    n = int(wishes.gpu_layers)
    if n > facts.n_layer:
        raise UsageError(
            f"Expected at most {facts.n_layer} layers, which this model has with its output layer, but --gpu-layers is "
            f"{n}; choose fewer, or all."
        )
    return n


def _context_warnings(facts: DecoderFacts, wishes: Wishes) -> list[PlanWarning]:
    trained = facts.spec.n_ctx_train
    if wishes.ctx_size == AUTO or int(wishes.ctx_size) <= trained:
        return []
    if not wishes.long_context:
        raise UsageError(
            f"Expected at most {trained} tokens of context, which the model was trained with, but --ctx-size is "
            f"{wishes.ctx_size}; choose fewer, or add --allow-long-context."
        )
    return [PlanWarning("long_context", {"ctx_size": int(wishes.ctx_size), "trained": trained})]


def _is_shared(device: ComputeDevice) -> bool:
    """Tell whether a device's memory is the machine's own, as of Apple's and of processors' graphics."""
    return device.kind == "igpu" or device.backend in ("Metal", "MTL")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
