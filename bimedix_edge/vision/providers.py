"""ONNX Runtime's execution providers: which are here, why one is not, and where an image encoder will compute."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from bimedix_edge.bundle import VisionSpec
from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.hardware.advice import Missing, vision_cuda
from bimedix_edge.hardware.facts import Provider
from bimedix_edge.hardware.nvidia import inspect_driver
from bimedix_edge.vision.onnx import LOG_FATAL, library_version, onnxruntime

__all__ = [
    "AUTO",
    "COREML",
    "CPU",
    "CPU_ONLY_WEIGHTS",
    "CUDA",
    "PROVIDERS",
    "built_for_cuda",
    "check_computes",
    "device_of",
    "devices_here",
    "encoder_device",
    "load_failure",
    "missing_of",
    "not_usable",
    "preload",
    "products_overflow",
    "providers",
    "suitable",
]

AUTO = "auto"
CPU, CUDA, COREML = "cpu", "cuda", "coreml"
# the best first
PROVIDERS = {CUDA: "CUDAExecutionProvider", COREML: "CoreMLExecutionProvider", CPU: "CPUExecutionProvider"}
# the shared part first, which the other one needs
_LIBRARIES = {CUDA: ("*onnxruntime_providers_shared.*", "*onnxruntime_providers_cuda.*")}
# int8 products exist on the CPU only: a session elsewhere would leave them to the CPU without a word
CPU_ONLY_WEIGHTS = "int8"
# ONNX: c = MatMulInteger(a uint8 (1, 64), b int8 (64, 16))
_PROBE = (
    "CAg6XAoYCgFhCgFiEgFjIg1NYXRNdWxJbnRlZ2VyEgFwWhMKAWESDgoMCAISCAoCCAEKAghAWhMKAWISDgoMCAMSCAoCCEAKAggQYhMKAWMSDgoM"
    "CAYSCAoCCAEKAggQQgQKABAR"
)


def devices_here() -> list[str]:
    """Return the devices besides the CPU that are here and known to ONNX Runtime, the best first."""
    return [device for device in (CUDA, COREML) if missing_of(device, failure=None) is None]


def encoder_device(wanted: str, spec: VisionSpec) -> str:
    """Return where an encoder will compute, before it is opened: a device that `auto` finds may still fail to load.

    Args:
        wanted: see `VisionEncoder`.
        spec: of the encoder.

    Raises:
        HardwareError, UsageError: the device that was asked for cannot be used, as for `VisionEncoder`.
    """
    if wanted == AUTO:
        return next(iter(suitable(spec)), CPU)
    check_computes(wanted, spec)
    if wanted != CPU and not (provider := _try_provider(wanted)).loads:
        raise not_usable(wanted, provider.reason, provider.remedy)
    return wanted


def check_computes(device: str, spec: VisionSpec) -> None:
    """Raise UsageError if there is no such device, or if it cannot compute an encoder's weights."""
    if device not in PROVIDERS:
        raise UsageError(
            f"Expected a device among {', '.join(sorted(PROVIDERS))}, but it is {device[:40]!r}; name one."
        )
    if device != CPU and spec.weights == CPU_ONLY_WEIGHTS:
        raise UsageError(
            f"Expected float16 or float32 vision weights for {device}, but this model's are {spec.weights}, "
            "which only the CPU computes; convert it again with --vision float16, or choose --vision-device cpu."
        )


def not_usable(device: str, cause: str, remedy: str | None) -> HardwareError:
    """Return the error for a device that the user named and that cannot be used."""
    advice = f"{remedy}, or choose" if remedy else "choose"
    return HardwareError(f"Expected the image encoder to run on {device}, but {cause}; {advice} --vision-device cpu.")


def suitable(spec: VisionSpec) -> list[str]:
    """Return the devices besides the CPU that are here and compute an encoder's weights, the best first."""
    return devices_here() if spec.weights != CPU_ONLY_WEIGHTS else []


def device_of(provider: str) -> str:
    """Return our name of a device, such as `cuda`, by ONNX Runtime's name of its provider."""
    return next(device for device, name in PROVIDERS.items() if name == provider)


def built_for_cuda() -> str:
    """Return the CUDA that ONNX Runtime was built for, such as `13.0`; empty where for none."""
    return str(getattr(onnxruntime, "cuda_version", ""))


def providers() -> tuple[Provider, ...]:
    """Return the providers that this program knows, the best first, each tried if nothing is known against it."""
    return tuple(_try_provider(device) for device in PROVIDERS)


def _try_provider(device: str) -> Provider:
    name = PROVIDERS[device]
    built_in = name in onnxruntime.get_available_providers()
    if (missing := missing_of(device, failure=None)) is None:
        if device == CUDA:
            preload()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_FATAL
        probe = onnxruntime.InferenceSession(base64.b64decode(_PROBE), options, providers=[name], enable_fallback=0)
        if name in probe.get_providers():
            return Provider(name, built_in=built_in, loads=True, reason="")
        missing = missing_of(device, failure=load_failure(device))
    assert missing is not None, "a provider that fails has a reason"
    return Provider(name, built_in=built_in, loads=False, reason=missing.cause, remedy=missing.remedy)


def missing_of(device: str, *, failure: str | None) -> Missing | None:
    """Return why a device cannot be used; None where nothing is known against it.

    Args:
        device: a key of `PROVIDERS`.
        failure: what its provider said when it did not load.
    """
    built_in = PROVIDERS[device] in onnxruntime.get_available_providers()
    if device == CUDA:
        # ONNX Runtime lists CUDA on machines without a device, too
        return vision_cuda(
            inspect_driver(), built_for=built_for_cuda() if built_in else "", version=library_version(), failure=failure
        )
    if not built_in:
        return Missing("this ONNX Runtime was built without it", None)
    return None if failure is None else Missing(f"its provider does not load ({failure})", None)


def preload() -> None:
    """Load CUDA and cuDNN from where pip has put them, before ONNX Runtime looks for them."""
    # what it prints is told by the session's failure
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        getattr(onnxruntime, "preload_dlls", lambda: None)()


def load_failure(device: str) -> str:
    """Return what the system says when the library of a provider is loaded: ONNX Runtime only logs it."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    libraries = [path for pattern in _LIBRARIES.get(device, ()) for path in sorted(folder.glob(pattern))]
    for path in libraries:
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            return str(error)
    return "it gives no reason"


@functools.cache
def products_overflow() -> bool:
    """Tell whether ONNX Runtime's int8 products overflow here, as they do on x86-64 without VNNI.

    Its other way is exact everywhere, but takes 1.7 times as long where this one is exact, too.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    probe = onnxruntime.InferenceSession(base64.b64decode(_PROBE), options, providers=["CPUExecutionProvider"])
    left, right = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    (product,) = probe.run(None, {"a": left, "b": right})
    return bool((product != 64 * 255 * 127).any())
