"""ONNX Runtime's execution providers: which ones this machine has, why one is missing, and which an encoder gets."""

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
# the shared part first: the other one needs it
_LIBRARIES = {CUDA: ("*onnxruntime_providers_shared.*", "*onnxruntime_providers_cuda.*")}
# int8 products exist on the CPU only: a session elsewhere would silently leave them to the CPU
CPU_ONLY_WEIGHTS = "int8"
# ONNX: c = MatMulInteger(a uint8 (1, 64), b int8 (64, 16))
_PROBE = (
    "CAg6XAoYCgFhCgFiEgFjIg1NYXRNdWxJbnRlZ2VyEgFwWhMKAWESDgoMCAISCAoCCAEKAghAWhMKAWISDgoMCAMSCAoCCEAKAggQYhMKAWMSDgoM"
    "CAYSCAoCCAEKAggQQgQKABAR"
)


def devices_here() -> list[str]:
    """Return the devices of this machine that ONNX Runtime knows, without the CPU, the best first."""
    return [device for device in (CUDA, COREML) if missing_of(device, failure=None) is None]


def encoder_device(wanted: str, spec: VisionSpec) -> str:
    """Return the device of an encoder before it is opened; one that `auto` finds may still fail to load.

    Args:
        wanted: See `VisionEncoder`.
        spec: Description of the encoder.

    Raises:
        HardwareError, UsageError: The named device cannot be used, as for `VisionEncoder`.
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
            f"There is no device {device[:40]!r} for the image encoder. Name one of {', '.join(sorted(PROVIDERS))}."
        )
    if device != CPU and spec.weights == CPU_ONLY_WEIGHTS:
        raise UsageError(
            f"{device} cannot compute this model's {spec.weights} vision weights; only the CPU can. Convert the model "
            "again with --vision float16, or choose --vision-device cpu."
        )


def not_usable(device: str, cause: str, remedy: str | None) -> HardwareError:
    """Return the error for a device that the user named and that cannot be used."""
    advice = f"{remedy[0].upper()}{remedy[1:]}, or choose" if remedy else "Choose"
    return HardwareError(f"The image encoder cannot run on {device}: {cause}. {advice} --vision-device cpu.")


def suitable(spec: VisionSpec) -> list[str]:
    """Return the devices of this machine that compute an encoder's weights, without the CPU, the best first."""
    return devices_here() if spec.weights != CPU_ONLY_WEIGHTS else []


def device_of(provider: str) -> str:
    """Return our name of a device, such as `cuda`, by ONNX Runtime's name of its provider."""
    return next(device for device, name in PROVIDERS.items() if name == provider)


def built_for_cuda() -> str:
    """Return the CUDA version that ONNX Runtime was built for, such as `13.0`; empty without CUDA."""
    return str(getattr(onnxruntime, "cuda_version", ""))


def providers() -> tuple[Provider, ...]:
    """Return the providers that this program knows, the best first; each that might load is tried."""
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
    """Return why a device cannot be used; None unless there is a known reason.

    Args:
        device: Key of `PROVIDERS`.
        failure: Error of its provider when it did not load; None before it was tried.
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
    """Load CUDA and cuDNN from pip's directories, before ONNX Runtime looks for them."""
    # the session's failure says what this prints
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        getattr(onnxruntime, "preload_dlls", lambda: None)()


def load_failure(device: str) -> str:
    """Return the system's error for a provider's library that does not load, which ONNX Runtime only logs."""
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
    """Return whether ONNX Runtime's fast int8 products overflow here, as they do on x86-64 without VNNI.

    The other ones are exact everywhere, but take 1.7 times as long where the fast ones are exact, too.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    probe = onnxruntime.InferenceSession(base64.b64decode(_PROBE), options, providers=["CPUExecutionProvider"])
    left, right = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    (product,) = probe.run(None, {"a": left, "b": right})
    return bool((product != 64 * 255 * 127).any())
