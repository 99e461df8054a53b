"""Plans on simulated devices: each plan fits, and one more layer would not."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.decoder.placement import Placement
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.hardware.facts import Backend, ComputeDevice, CudaDriver, Hardware, Machine, NvidiaGpu
from bimedix_edge.planning.fit import PlacementRequest, Plan, VisionFacts, plan
from bimedix_edge.planning.memory import DecoderFacts, LlamaBuild, Load, host_need, layers_need

GB, MIB = 10**9, 1 << 20
# the 8B in Q4_K_M: half of its layers have a larger type in two matrices
SPEC = DecoderSpec("llama", "Q4_K_M", 32, 4096, 32, 8, 128, 128257, 131072)
LAYERS = tuple(138_936_320 if index < 4 or index >= 28 or index % 3 == 0 else 122_683_392 for index in range(32))
FACTS = DecoderFacts(SPEC, 14336, 4_915_760_064, 295_504_128, LAYERS, 430_959_904, 48_168_960, 3_000_000_000)
VISION = VisionFacts(650 * MIB)
BUILD = LlamaBuild(kernels=True, version="0.3.36")
CPU = ComputeDevice("CPU", "a processor", "cpu", "CPU", 0, 0)
CARD = {24: 23.6, 12: 11.5, 8: 7.4, 6: 5.4, 4: 3.4, 2: 1.2}


def card(free_gb: float, index: int = 0, total_gb: float = 24) -> ComputeDevice:
    return ComputeDevice(f"CUDA{index}", "a card", "gpu", "CUDA", int(free_gb * GB), int(total_gb * GB))


def machine(*devices: ComputeDevice, memory_gb: float | None = 32, available_gb: float | None = None) -> Hardware:
    backends = {device.backend for device in devices} | {"CPU"}
    total = None if memory_gb is None else int(memory_gb * GB)
    available = total if available_gb is None else int(available_gb * GB)
    return Hardware(
        machine=Machine("Linux x86_64", "a processor", 8, total, available),
        backends=tuple(Backend(name, 1) for name in sorted(backends)),
        backend_faults=(),
        devices=(*devices, CPU),
        providers=(),
        cuda=None,
    )


def planned(hardware: Hardware, vision: VisionFacts = VISION, facts: DecoderFacts = FACTS, **request: object) -> Plan:
    return plan(facts, hardware, PlacementRequest(**request), vision, BUILD)  # type: ignore[arg-type]


def splits(n_layers: int, n_devices: int) -> list[tuple[int, ...]]:
    return [split for split in itertools.product(range(n_layers + 1), repeat=n_devices) if sum(split) == n_layers]


def fits(found: Plan, hardware: Hardware, target: int, split: tuple[int, ...], facts: DecoderFacts = FACTS) -> bool:
    """Return whether this split fits, each device computed on its own."""
    gpus = [device for device in hardware.devices if device.kind in ("gpu", "igpu")]
    placement = replace(found.placement, n_gpu_layers=sum(split))
    start, shared = facts.n_layer - sum(split), 0
    for gpu, n in zip(gpus, split, strict=True):
        need = layers_need(facts, found.load, placement, range(start, start + n))
        if n and need > gpu.free_bytes - target:
            return False
        shared += need if gpu.kind == "igpu" or gpu.backend == "Metal" else 0
        start += n
    host = host_need(facts, found.load, placement, BUILD, vision_bytes=VISION.host_bytes)
    memory = hardware.machine.memory_bytes
    return memory is None or host.total + shared <= memory


def check(found: Plan, hardware: Hardware, target: int = 1024 * MIB, facts: DecoderFacts = FACTS) -> None:
    """Check that each device keeps its target free, and that no split of one more layer would."""
    gpus = [device for device in hardware.devices if device.kind in ("gpu", "igpu")]
    by_name = dict(zip(found.placement.devices, found.placement.split, strict=True))
    assert fits(found, hardware, target, tuple(by_name.get(gpu.name, 0) for gpu in gpus), facts)
    for use in found.devices:
        assert use.need_bytes <= use.free_bytes - target
    n = found.placement.n_gpu_layers
    if n < facts.n_layer:
        assert not any(fits(found, hardware, target, split, facts) for split in splits(n + 1, len(gpus)))


@pytest.mark.parametrize(
    ("size", "layers", "kv_type", "speed"),
    [
        (24, 33, "f16", "gpu"),
        (12, 33, "f16", "gpu"),
        (8, 33, "f16", "gpu"),
        (6, 28, "q8_0", "mixed"),
        (4, 13, "q8_0", "mixed"),
        (2, 0, "f16", "cpu"),
    ],
)
def test_one_card(size: int, layers: int, kv_type: str, speed: str) -> None:
    hardware = machine(card(CARD[size]))
    found = planned(hardware)
    assert (found.placement.n_gpu_layers, found.placement.kv_type, found.speed) == (layers, kv_type, speed)
    assert found.load.n_ctx == 4096
    check(found, hardware)


def test_two_cards_share_by_what_is_free() -> None:
    hardware = machine(card(11.5, 0), card(5.7, 1))
    found = planned(hardware)
    assert found.placement.n_gpu_layers == 33
    first, second = found.placement.split
    assert first > second > 0
    parts = [use.need_bytes / (use.free_bytes - 1024 * MIB) for use in found.devices]
    assert max(parts) - min(parts) < 0.1
    check(found, hardware)


def test_two_small_cards() -> None:
    hardware = machine(card(3.4, 0), card(2.9, 1))
    found = planned(hardware)
    assert 0 < found.placement.n_gpu_layers < 33
    assert len(found.placement.split) == 2
    check(found, hardware)


def test_a_card_mostly_in_use() -> None:
    hardware = machine(card(2.4, total_gb=24))
    found = planned(hardware)
    assert 0 < found.placement.n_gpu_layers < 10
    check(found, hardware)
    busy = planned(machine(card(0.9, total_gb=24)))
    assert busy.placement.n_gpu_layers == 0
    assert busy.line.startswith("CPU: CUDA0 has 0.0 GB beside the 1024 MiB kept free, and one layer takes")


@pytest.mark.parametrize(("memory_gb", "free_gb", "layers"), [(16, 11.4, 33), (8, 5.7, 0)])
def test_unified_memory_counts_once(memory_gb: float, free_gb: float, layers: int) -> None:
    metal = ComputeDevice("Metal", "Apple M2", "gpu", "Metal", int(free_gb * GB), int(free_gb * GB))
    hardware = machine(metal, memory_gb=memory_gb)
    found = planned(hardware)
    assert found.placement.n_gpu_layers >= layers
    check(found, hardware)


def test_a_cards_graphics_come_before_the_processors() -> None:
    inside = ComputeDevice("Vulkan1", "in the processor", "igpu", "Vulkan", 14 * GB, 14 * GB)
    assert planned(machine(inside, card(23))).placement.devices == ("CUDA0",)
    assert planned(machine(inside)).placement.devices == ("Vulkan1",)
    assert planned(machine(inside, card(23)), devices=("Vulkan1",)).placement.devices == ("Vulkan1",)


def test_the_image_encoder_takes_its_part_first() -> None:
    hardware = machine(card(7.0))
    alone = planned(hardware, VisionFacts(0))
    beside = planned(hardware, VisionFacts(0, "CUDA0", 900 * MIB))
    assert alone.placement.n_gpu_layers > beside.placement.n_gpu_layers > 0
    (use,) = beside.devices
    assert use.need_bytes <= use.free_bytes - 1024 * MIB


@pytest.mark.parametrize("seed", range(60))
def test_no_plan_with_one_more_layer_would_fit(seed: int) -> None:
    rng = random.Random(seed)
    layers = tuple(rng.randrange(20, 140) * MIB for _ in range(rng.choice([4, 8, 12])))
    spec = replace(SPEC, n_layer=len(layers), n_ctx_train=8192)
    facts = DecoderFacts(spec, 14336, sum(layers) + 700 * MIB, 300 * MIB, layers, 400 * MIB, max(layers) // 3, 0)
    n_cards = rng.choice([1, 1, 2])
    hardware = machine(*(card(rng.uniform(0.3, 3.5), index) for index in range(n_cards)))
    target = rng.choice([0, 256, 1024])
    found = planned(
        hardware,
        facts=facts,
        target_bytes=target * MIB,
        ctx_size=rng.choice(["auto", 512, 2048, 8192]),
        kv_type=rng.choice(["f16", "q8_0"]),
    )
    check(found, hardware, target * MIB, facts)


def test_automatic_says_why_the_cpu() -> None:
    assert planned(machine()).line.startswith("CPU: no GPU backend in llama.cpp; 4096 tokens of context in f16")
    silent = replace(machine(), backends=(Backend("CUDA", 0), Backend("CPU", 1)), backend_faults=("no driver",))
    assert planned(silent).line.startswith("CPU: llama.cpp's CUDA found no device (no driver)")
    assert planned(machine(card(24)), gpu_layers=0).line.startswith("CPU: as asked")


@pytest.mark.parametrize("gpu_layers", ["all", 33, 1])
def test_a_gpu_that_was_asked_for_and_is_missing(gpu_layers: int | str) -> None:
    here = NvidiaGpu("a card", (8, 9), 8 * GB, 7 * GB)
    hardware = replace(machine(), cuda=CudaDriver("580.1", (13, 0), (here,), None), cuda_compiler=True)
    with pytest.raises(HardwareError, match=r"built without CUDA; .*DGGML_CUDA=on.*--gpu-layers 0 stays on the CPU"):
        planned(hardware, gpu_layers=gpu_layers)


def test_what_does_not_fit_names_the_nearest_plans() -> None:
    hardware = machine(card(5.4))
    with pytest.raises(
        HardwareError, match=r"33 of 33 layers with 4096 tokens .* do not fit: .*This would fit: --gpu-layers (\d+)"
    ) as error:
        planned(hardware, gpu_layers="all", ctx_size=4096)
    n = int(str(error.value).split("--gpu-layers ")[1].split(",")[0].split(".")[0])
    planned(hardware, gpu_layers=n, ctx_size=4096)
    with pytest.raises(HardwareError):
        planned(hardware, gpu_layers=n + 1, ctx_size=4096)


def test_a_context_that_does_not_fit_names_one_that_does() -> None:
    hardware = machine(memory_gb=9)
    with pytest.raises(
        HardwareError, match=r"The model needs .*, and this machine has 9\.0 GB\. .* --ctx-size (\d+)"
    ) as error:
        planned(hardware, ctx_size=65536, kv_type="f16")
    n_ctx = int(str(error.value).split("--ctx-size ")[1].rstrip("."))
    planned(hardware, ctx_size=n_ctx, kv_type="f16")
    with pytest.raises(HardwareError):
        planned(hardware, ctx_size=n_ctx + 256, kv_type="f16")


def test_an_automatic_context_shrinks_where_memory_is_short() -> None:
    least = host_need(FACTS, Load(2048, 512, 8), Placement(kv_type="q8_0"), BUILD, vision_bytes=VISION.host_bytes)
    found = planned(machine(memory_gb=(least.total + 10 * MIB) / GB))
    assert (found.load.n_ctx, found.placement.kv_type) == (2048, "q8_0")
    with pytest.raises(HardwareError, match="Choose a smaller model or a smaller type"):
        planned(machine(memory_gb=2))


def test_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="--gpu-layers 34 is too many: this model has 33 layers"):
        planned(machine(card(24)), gpu_layers=34)
    with pytest.raises(UsageError, match=r"There is no device 'CUDA7'\. Name one that exists: CUDA0\."):
        planned(machine(card(24)), devices=("CUDA7",))
    with pytest.raises(UsageError, match=r"--ctx-size 131073 is too long: .* 131072 tokens .* --allow-long-context"):
        planned(machine(card(24)), ctx_size=131073)
    assert "longer than" in str(planned(machine(card(24)), ctx_size=140000, long_context=True).warnings[0])


def test_memory_that_others_use_is_warned_of() -> None:
    found = planned(machine(memory_gb=16, available_gb=3))
    assert "3.0 GB are free now" in str(found.warnings[0])


def test_keys_and_values_in_the_machines_memory() -> None:
    hardware = machine(card(3.4))
    there, here = planned(hardware, kv_type="f16"), planned(hardware, kv_type="f16", kv_placement="cpu")
    assert here.placement.n_gpu_layers > there.placement.n_gpu_layers
    assert here.host.kv == 32 * 16 * MIB
    check(here, hardware)
