"""A plan for the model and the machine at hand: the facts that `fit` decides on, gathered."""

from __future__ import annotations

from pathlib import Path

from bimedix_edge.bundle import DecoderSpec, Manifest
from bimedix_edge.decoder.llama import PINNED_VERSION, open_kernels, repacks
from bimedix_edge.planning.devices import inspect_hardware
from bimedix_edge.planning.fit import Plan, VisionFacts, Wishes, plan
from bimedix_edge.planning.memory import read_facts, vision_need
from bimedix_edge.settings import Settings
from bimedix_edge.vision.encoder import VisionEncoder, encoder_kernels
from bimedix_edge.vision.providers import encoder_device

__all__ = ["plan_decoder", "plan_model", "vision_facts", "wishes"]

# conversations whose part of the KV cache is kept between their answers, if it has the cells
_MOST_CHATS = 32
_MIB = 1 << 20
# a device that ONNX Runtime computes on, as ggml calls it
_VISION_DEVICES = {"cuda": "CUDA0"}


def plan_model(
    directory: Path, manifest: Manifest, settings: Settings, *, open_vision: VisionEncoder | None = None
) -> Plan:
    """Decide how a model runs here.

    Args:
        directory: the bundle; of its decoder only the header is read, with bounds.
        manifest: of the bundle.
        settings: what the user asks for.
        open_vision: the image encoder, if it is open already: what it takes on a device is no longer free there.
            Otherwise it will compute where and as the settings say.

    Raises:
        UsageError, HardwareError: see `fit.plan` and `vision.encoder_device`.
        BundleError: the decoder's header cannot be read.
        DecoderError: llama.cpp does not load.
    """
    device = open_vision.device if open_vision else encoder_device(settings.vision_device, manifest.vision)
    found = open_vision.kernels if open_vision else encoder_kernels(settings.kernels, manifest.vision)
    vision = vision_facts(manifest, device, kernels=found.name is not None, is_open=open_vision is not None)
    path = directory / manifest.files["decoder"].path
    return plan_decoder(path, manifest.decoder, wishes(settings), vision, kernels=settings.kernels)


def vision_facts(manifest: Manifest, device: str, *, kernels: bool, is_open: bool = False) -> VisionFacts:
    """Return what the image encoder takes, and where.

    Args:
        manifest: of the bundle.
        device: where it computes: `cpu`, `cuda` or `coreml`.
        kernels: whether ours compute it.
        is_open: whether it is open already: what it takes on a device is no longer free there.
    """
    need, place = vision_need(manifest, kernels=kernels), _VISION_DEVICES.get(device)
    return VisionFacts(need, None) if place is None else VisionFacts(0, place, 0 if is_open else need)


def plan_decoder(path: Path, spec: DecoderSpec, wanted: Wishes, vision: VisionFacts, *, kernels: str) -> Plan:
    """Decide how a decoder runs here that need not be part of a bundle.

    Args:
        path: of the GGUF file, of which only the header is read, with bounds.
        spec: what is in it.
        wanted: what the user asks for.
        vision: the image encoder beside it.
        kernels: which kernels compute what stays with the CPU, one of `kernels.CHOICES`.

    Raises:
        UsageError, HardwareError, BundleError, DecoderError: see `plan_model`.
    """
    ours = open_kernels(kernels).name is not None
    return plan(
        read_facts(path, spec),
        inspect_hardware(with_providers=False),
        wanted,
        vision,
        version=PINNED_VERSION,
        kernels=ours,
        repacks=repacks(kernels=ours),
    )


def wishes(settings: Settings) -> Wishes:
    """Return what settings ask for."""
    return Wishes(
        gpu_layers=settings.gpu_layers,
        ctx_size=settings.ctx_size,
        kv_type=settings.kv_type,
        kv_placement=settings.kv_placement,
        target_bytes=settings.fit_target * _MIB,
        devices=tuple(filter(None, (name.strip() for name in (settings.device or "").split(",")))),
        long_context=settings.allow_long_context == "on",
        n_seq_max=max(_MOST_CHATS, settings.parallel),
    )
