"""A plan for the model and the machine at hand: the facts that `fit` decides on, gathered."""

from __future__ import annotations

from pathlib import Path

from bimedix_edge.bundle import Manifest
from bimedix_edge.decoder import PINNED_VERSION, open_kernels, repacks
from bimedix_edge.devices import inspect_hardware
from bimedix_edge.fit import Plan, VisionFacts, Wishes, plan
from bimedix_edge.memory import read_facts, vision_need
from bimedix_edge.settings import Settings

__all__ = ["plan_model"]

# conversations whose part of the KV cache is kept between their answers, if it has the cells
_MOST_CHATS = 32
_MIB = 1 << 20
# a device that ONNX Runtime computes on, as ggml calls it
_VISION_DEVICES = {"cuda": "CUDA0"}


def plan_model(
    directory: Path, manifest: Manifest, settings: Settings, *, vision_device: str = "cpu", vision_open: bool = False
) -> Plan:
    """Decide how a model runs here.

    Args:
        directory: the bundle; of its decoder only the header is read, with bounds.
        manifest: of the bundle.
        settings: what the user asks for.
        vision_device: where the image encoder computes: `cpu`, `cuda` or `coreml`.
        vision_open: whether it is open already: what it takes on a device is no longer free there.

    Raises:
        UsageError, HardwareError: see `fit.plan`.
        BundleError: the decoder's header cannot be read.
        DecoderError: llama.cpp does not load.
    """
    facts = read_facts(directory / manifest.files["decoder"].path, manifest.decoder)
    kernels = open_kernels(settings.kernels).name is not None
    need, device = vision_need(manifest), _VISION_DEVICES.get(vision_device)
    vision = VisionFacts(need, None) if device is None else VisionFacts(0, device, 0 if vision_open else need)
    hardware = inspect_hardware(with_providers=False)
    return plan(
        facts,
        hardware,
        wishes(settings),
        vision,
        version=PINNED_VERSION,
        kernels=kernels,
        repacks=repacks(kernels=kernels),
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
