"""The image encoder: one image as many, where it runs, and that what is asked for is what runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bimedix_edge.bundle import open_bundle
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.errors import HardwareError, UsageError, VisionError
from bimedix_edge.hardware.facts import CudaDriver, NvidiaGpu
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.store import demo_checkpoint
from bimedix_edge.vision import providers
from bimedix_edge.vision.encoder import EncoderFile, EncodingStop, Stopped, VisionEncoder
from bimedix_edge.vision.kernels import VisionKernels, choose_vision_kernels
from bimedix_edge.vision.onnx import onnxruntime
from bimedix_edge.vision.providers import devices_here
from bimedix_edge.vision.sessions import PlacedSession, session_options

COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main"]
NAMES = ("normal", "effusion_left", "nodule_right_upper")


def opened(directory: Path, device: str = "cpu", weights: str | None = None, *, kernels: str = "auto") -> VisionEncoder:
    bundle = open_bundle(directory)
    spec = bundle.manifest.vision if weights is None else replace(bundle.manifest.vision, weights=weights)
    return VisionEncoder(replace(EncoderFile.of(bundle), spec=spec), 2, device=device, kernels=kernels)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("int8") / "bundle"
    convert(demo_checkpoint(), directory, ConvertOptions(file_type="Q8_0", vision="int8"))
    return directory


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_an_image_is_the_same_whatever_stands_beside_it(
    kind: str, bundles: dict[str, Path], int8: Path, samples: Path
) -> None:
    encoder = opened(int8 if kind == "int8" else bundles["F16"])
    images = [load_picture(samples / f"{name}.png").pixels for name in NAMES]
    together = encoder.encode([*images, images[0]])
    alone = [encoder.encode([image])[0] for image in images]
    assert [found.tobytes() for found in together] == [found.tobytes() for found in (*alone, alone[0])]
    assert len({found.tobytes() for found in alone}) == 3
    assert encoder.encode([]) == []


def test_our_kernels_agree_with_the_graphs_definitions(int8: Path, samples: Path) -> None:
    """Both round the same numbers, to bytes here and there, and to bfloat16 here alone."""
    images = [load_picture(samples / f"{name}.png").pixels for name in NAMES]
    stock = opened(int8, kernels="off")
    assert stock.kernels == VisionKernels(None, "switched off")
    expected = stock.encode(images)
    tried = 0
    for kernels in ("auto", "amx", "avx512vnni"):
        encoder = opened(int8, kernels=kernels)
        assert encoder.identity.endswith(f"|{encoder.kernels.identity}")
        if encoder.kernels.name is None:
            assert encoder.identity == stock.identity
            continue
        tried += 1
        assert encoder.identity != stock.identity
        for found, other in zip(encoder.encode(images), expected, strict=True):
            norms = np.linalg.norm(found, axis=1) * np.linalg.norm(other, axis=1)
            assert ((found * other).sum(axis=1) / norms).min() >= 0.9995
            assert found.tobytes() != other.tobytes()
    if not tried:
        pytest.skip("this processor has none of them")


def test_a_graph_that_calls_no_function_has_no_use_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimedix_edge.converters.vision.graph.is_layer", lambda *_: False)
    monkeypatch.setattr("bimedix_edge.converters.vision.graph.has_heads", lambda *_: False)
    convert(demo_checkpoint(), tmp_path / "plain", ConvertOptions(file_type="Q8_0", vision="int8"))
    encoder = opened(tmp_path / "plain")
    assert encoder.kernels.name is None
    if choose_vision_kernels("auto").name is not None:
        assert "convert the checkpoint again" in encoder.kernels.reason


def test_weights_that_are_not_int8_are_onnx_runtimes(bundles: dict[str, Path]) -> None:
    assert opened(bundles["F16"]).kernels == VisionKernels(None, "the weights are float32")


def test_the_way_over_fixed_places_gives_the_same(bundles: dict[str, Path], samples: Path) -> None:
    encoder = opened(bundles["F16"])
    images = [load_picture(samples / f"{name}.png").pixels for name in NAMES]
    expected = encoder.encode(images)
    # the CPU's memory in place of a device's
    session = onnxruntime.InferenceSession(
        str(bundles["F16"] / "vision.onnx"), session_options("float32", 2), providers=["CPUExecutionProvider"]
    )
    encoder.session = PlacedSession(session, "cpu")
    found = encoder.encode(images)
    # an earlier result is not overwritten by a later one
    assert [a.tobytes() for a in found] == [b.tobytes() for b in expected]
    stop = EncodingStop()
    stop.run_options.terminate = True
    with pytest.raises(VisionError):
        encoder.encode(images[:1], stop)


def test_float16_agrees_with_float32(bundles: dict[str, Path], samples: Path, tmp_path: Path) -> None:
    convert(demo_checkpoint(), tmp_path / "half", ConvertOptions(file_type="Q8_0", vision="float16"))
    half, whole = opened(tmp_path / "half", "auto"), opened(bundles["F16"])
    images = [load_picture(samples / f"{name}.png").pixels for name in NAMES]
    for found, expected in zip(half.encode(images), whole.encode(images), strict=True):
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) / norms).min() >= 0.9999


def test_a_stopped_encoding_ends(bundles: dict[str, Path]) -> None:
    stop = EncodingStop()
    stop.stop()
    encoder = opened(bundles["F16"])
    with pytest.raises(Stopped):
        encoder.encode([np.zeros((8, 8, 3), np.uint8)], stop)
    # also one that ONNX Runtime has begun
    stop.stopped = False
    with pytest.raises(VisionError):
        encoder.encode([np.zeros((8, 8, 3), np.uint8)], stop)
    assert encoder.encode([np.zeros((8, 8, 3), np.uint8)])[0].shape == (encoder.spec.n_tokens, encoder.spec.n_embd)


def test_auto_is_the_cpu_for_int8(int8: Path) -> None:
    encoder = opened(int8, "auto")
    assert (encoder.device, encoder.fault) == ("cpu", None)
    for device in ("cuda", "coreml"):
        with pytest.raises(UsageError, match=f"^{device} cannot compute this model's int8 .*--vision float16"):
            opened(int8, device)
    with pytest.raises(UsageError, match=r"no device 'tpu' .* one of coreml, cpu, cuda"):
        opened(int8, "tpu")


@pytest.mark.parametrize("device", ["cuda", "coreml"])
def test_a_device_that_is_not_here_is_an_error_and_no_fall_back(device: str, bundles: dict[str, Path]) -> None:
    if device in devices_here():
        pytest.skip(f"{device} is here")
    with pytest.raises(HardwareError, match=f"The image encoder cannot run on {device}: "):
        opened(bundles["F16"], device)
    options = ["-m", str(bundles["F16"]), "--vision-device", device]
    for words in (["ask", "Hello"], ["ask", "--dry-run", "Hello"], ["chat", "--dry-run"]):
        result = subprocess.run([*COMMAND, *words, *options], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout) == (5, ""), words
        assert result.stderr.startswith("bimedix-edge: The image encoder cannot run on"), words
    environ = os.environ | {"BIMEDIX_EDGE_VISION_DEVICE": device}
    words = ["models", "show", str(bundles["F16"])]
    shown = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True, env=environ).stdout
    assert f"The image encoder cannot run on {device}" in " ".join(shown.split())


def test_a_device_that_does_not_load_is_an_error_and_for_auto_a_fault_that_is_told(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime does not know CUDA")
    if devices_here():
        pytest.skip("a device is here")
    # the driver says that there is one, and what ONNX Runtime needs for it is missing
    gpu = NvidiaGpu("a GPU", (8, 9), 8 << 30, 7 << 30)
    monkeypatch.setattr(providers, "inspect_driver", lambda: CudaDriver("580.1", (13, 0), (gpu,), None))
    with pytest.raises(HardwareError, match="cannot load what it needs"):
        opened(bundles["F16"], "cuda")
    encoder = opened(bundles["F16"], "auto")
    assert encoder.device == "cpu"
    assert encoder.fault is not None
    assert "cuda" in encoder.fault
    assert capfd.readouterr() == ("", "")


def test_a_wrong_device_in_the_settings_is_wrong_usage() -> None:
    result = subprocess.run(
        [*COMMAND, "ask", "--vision-device", "tpu", "x"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Use auto, cpu, cuda or coreml." in " ".join(result.stderr.split())


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = (
        "import os, sys, builtins\n"
        "real = builtins.__import__\n"
        "def noted(name, *rest):\n"
        "    if name == 'onnxruntime' and name not in sys.modules: print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = noted\n"
        "import bimedix_edge.vision.onnx"
    )
    result: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[0] == "1"
