"""Plans for this machine: gathers the facts that `fit` decides on."""

from __future__ import annotations

from pathlib import Path

from bimedix_edge.bundle import DecoderSpec, Manifest
from bimedix_edge.decoder.llama import PINNED_VERSION, open_kernels, repacks
from bimedix_edge.planning.devices import inspect_hardware
from bimedix_edge.planning.fit import PlacementRequest, Plan, VisionFacts, plan
from bimedix_edge.planning.memory import LlamaBuild, read_facts, vision_need
from bimedix_edge.settings import Settings
from bimedix_edge.vision.encoder import VisionEncoder, encoder_kernels
from bimedix_edge.vision.providers import encoder_device

__all__ = ["placement_request", "plan_decoder", "plan_model", "vision_facts"]

# conversations that keep their cells of the KV cache between answers, as far as it has cells
_MOST_CHATS = 32
_MIB = 1 << 20
# ggml's names of ONNX Runtime's devices
_VISION_DEVICES = {"cuda": "CUDA0"}


def plan_model(
    directory: Path, manifest: Manifest, settings: Settings, *, open_vision: VisionEncoder | None = None
) -> Plan:
    """Decide how a model runs on this machine.

    Args:
        directory: Directory of the bundle. Only the header of its decoder is read, with bounds.
        manifest: Manifest of the bundle.
        settings: The user's settings.
        open_vision: The image encoder, if it is open: the device's free memory then excludes its share already.
            Otherwise the settings say where it will compute.

    Raises:
        UsageError, HardwareError: See `fit.plan` and `vision.encoder_device`.
        BundleError: The decoder's header cannot be read.
        DecoderError: llama.cpp does not load.
    """
    device = open_vision.device if open_vision else encoder_device(settings.vision_device, manifest.vision)
    found = open_vision.kernels if open_vision else encoder_kernels(settings.kernels, manifest.vision)
    vision = vision_facts(manifest, device, kernels=found.name is not None, is_open=open_vision is not None)
    path = directory / manifest.files["decoder"].path
    return plan_decoder(path, manifest.decoder, placement_request(settings), vision, kernels=settings.kernels)


def vision_facts(manifest: Manifest, device: str, *, kernels: bool, is_open: bool = False) -> VisionFacts:
    """Return where the image encoder computes, and the memory it takes.

    Args:
        manifest: Manifest of the bundle.
        device: Device that computes it: `cpu`, `cuda` or `coreml`.
        kernels: Whether our kernels compute it.
        is_open: Whether it is open: the device's free memory then excludes its share already.
    """
    need, place = vision_need(manifest, kernels=kernels), _VISION_DEVICES.get(device)
    return VisionFacts(need, None) if place is None else VisionFacts(0, place, 0 if is_open else need)


def plan_decoder(
    path: Path, spec: DecoderSpec, request: PlacementRequest, vision: VisionFacts, *, kernels: str
) -> Plan:
    """Decide how a decoder runs on this machine, whether or not it is part of a bundle.

    Args:
        path: Path of the GGUF file. Only its header is read, with bounds.
        spec: Shape of the decoder.
        request: The user's constraints.
        vision: The image encoder beside it.
        kernels: Kernels for the layers on the CPU, one of `kernels.CHOICES`.

    Raises:
        UsageError, HardwareError, BundleError, DecoderError: See `plan_model`.
    """
    ours = open_kernels(kernels).name is not None
    build = LlamaBuild(kernels=ours, repacks=repacks(kernels=ours), version=PINNED_VERSION)
    return plan(read_facts(path, spec), inspect_hardware(with_providers=False), request, vision, build)


def placement_request(settings: Settings) -> PlacementRequest:
    """Return the constraints that the settings state."""
    return PlacementRequest(
        gpu_layers=settings.gpu_layers,
        ctx_size=settings.ctx_size,
        kv_type=settings.kv_type,
        kv_placement=settings.kv_placement,
        target_bytes=settings.fit_target * _MIB,
        devices=tuple(filter(None, (name.strip() for name in (settings.device or "").split(",")))),
        long_context=settings.allow_long_context == "on",
        n_seq_max=max(_MOST_CHATS, settings.parallel),
    )
