"""The estimate of memory against the measured peak of processes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bimedix_edge.bundle import DecoderSpec, read_manifest
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.synthetic.decoder import write_random_decoder
from bimedix_edge.decoder.placement import Placement
from bimedix_edge.errors import BundleError
from bimedix_edge.planning.memory import LlamaBuild, Load, device_need, host_need, n_cells, read_facts, vision_need
from bimedix_edge.store import demo_checkpoint

TOLERANCE = 0.05
_SCRIPT = Path(__file__).parents[1] / "support" / "measured_peak.py"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def compare(*arguments: object) -> float:
    """Return the estimate divided by the measured peak, and print both."""
    command = [sys.executable, str(_SCRIPT), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    ratio = float(found["estimate_bytes"] / found["peak_bytes"])
    print(*arguments[2:], f"peak {found['peak_bytes'] / 1e6:.1f} MB, estimate {ratio:.3f} of it", found["parts"])
    return ratio


@on_linux
@pytest.mark.parametrize(
    ("n_ctx", "kv_type", "kernels"), [(512, "f16", "auto"), (8192, "f16", "auto"), (4096, "q8_0", "auto")]
)
def test_the_demo_takes_what_was_estimated(
    bundles: dict[str, Path], samples: Path, n_ctx: int, kv_type: str, kernels: str
) -> None:
    image = samples / "nodule_right_upper.png"
    assert compare(bundles["Q8_0"], image, n_ctx, kv_type, kernels) == pytest.approx(1, abs=TOLERANCE)


@on_linux
@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_an_int8_encoder_takes_what_was_estimated(kernels: str, samples: Path, tmp_path: Path) -> None:
    convert(demo_checkpoint(), tmp_path / "int8", ConvertOptions(file_type="Q8_0", vision="int8"))
    image = samples / "nodule_right_upper.png"
    assert compare(tmp_path / "int8", image, 2048, "f16", kernels) == pytest.approx(1, abs=TOLERANCE)


def test_kernels_of_ours_keep_int8_weights_once(bundles: dict[str, Path]) -> None:
    manifest = read_manifest(bundles["F16"])
    int8 = replace(manifest, vision=replace(manifest.vision, weights="int8"))
    ours, stock = (vision_need(int8, kernels=kernels) for kernels in (True, False))
    size = manifest.files["vision"].size_bytes
    assert stock - ours == pytest.approx(0.78 * size - (2 << 20), abs=2)


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["demo", "1b", "8b"])
def test_every_shape_takes_what_was_estimated(
    bundles: dict[str, Path], samples: Path, tmp_path: Path, shape: str
) -> None:
    model, image, more = bundles["Q4_K_M"], samples / "nodule_right_upper.png", []
    if shape != "demo":
        model, image, more = tmp_path / "decoder.gguf", Path("-"), [shape]
        write_random_decoder(model, shape, FILE_TYPES["Q4_K_M"], lambda _done, _total: None)
    ratios = {
        (n_ctx, kv_type): compare(model, image, n_ctx, kv_type, "auto", *more)
        for n_ctx in (512, 2048, 4096, 8192)
        for kv_type in ("f16", "q8_0")
    }
    assert {case: ratio for case, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE} == {}


def test_layers_and_keys_are_counted_where_they_are(bundles: dict[str, Path]) -> None:
    spec = read_manifest(bundles["F16"]).decoder
    facts = read_facts(bundles["F16"] / "decoder.gguf", spec)
    assert facts.file_bytes == (bundles["F16"] / "decoder.gguf").stat().st_size
    assert facts.embedding_bytes == spec.n_vocab * spec.n_embd * 2
    assert facts.n_layer == spec.n_layer + 1
    load, build = Load(1000, 512, 8), LlamaBuild(kernels=True)
    assert n_cells(load.n_ctx) == 1024
    cpu = host_need(facts, load, Placement(), build)
    assert cpu.kv == 2 * spec.n_layer * spec.n_head_kv * spec.head_dim * 2 * 1024
    half = Placement(n_gpu_layers=3, devices=("A", "B"), split=(1, 2))
    host = host_need(facts, load, half, build)
    moved = facts.output_bytes + sum(facts.layer_bytes[2:])
    assert (cpu.weights - host.weights, host.kv) == (moved, cpu.kv // 2)
    first, second = device_need(facts, load, half, 0), device_need(facts, load, half, 1)
    assert first > facts.layer_bytes[2] + cpu.kv // 4
    assert second > facts.layer_bytes[3] + facts.output_bytes + cpu.kv // 4
    assert host_need(facts, load, replace(half, kv_on_gpu=False), build).kv == cpu.kv


@pytest.mark.parametrize("damage", ["empty", "short", "tensors", "layers"])
def test_a_damaged_header_is_refused(bundles: dict[str, Path], tmp_path: Path, damage: str) -> None:
    data = bundles["F16"].joinpath("decoder.gguf").read_bytes()
    spec: DecoderSpec = read_manifest(bundles["F16"]).decoder
    if damage == "layers":
        spec = replace(spec, n_layer=40)
    changed = {"empty": b"", "short": data[:1000], "tensors": data[:8] + struct.pack("<Q", 1 << 60) + data[16:]}
    path = tmp_path / "decoder.gguf"
    path.write_bytes(changed.get(damage, data))
    with pytest.raises(BundleError, match="cannot be read as a decoder of"):
        read_facts(path, spec)
