"""The findings of `doctor` about installed models, cached embeddings, and formats of pictures."""

from __future__ import annotations

from pathlib import Path

from bimedix_edge.bundle import Manifest, read_manifest, verify_bundle
from bimedix_edge.cli.findings import Finding, gb
from bimedix_edge.engine.image_cache import cache_usage
from bimedix_edge.errors import BundleError
from bimedix_edge.imaging.codecs import GPL_COMMAND, codecs
from bimedix_edge.settings import OFF, Settings
from bimedix_edge.store import Store

__all__ = ["cache_findings", "codec_findings", "model_findings", "store_findings"]

# hashed in less than half a second; larger models are hashed only with --verify
_SMALL_BYTES = 256 << 20
_WHOLE, _SIZES = "every byte matches its manifest", "names and sizes match its manifest (--verify reads every byte)"


def model_findings(settings: Settings, *, verify: bool) -> list[Finding]:
    """Return whether the model that chat would use is intact and fits.

    Raises:
        BimedixEdgeError: It cannot be used.
    """
    store = Store(settings.store_dir, settings.cache_dir)
    directory = store.find(settings.model) if settings.model else store.default()
    if store.is_demo(directory) and not directory.is_dir():
        return [Finding("model", "none installed; the demo model will be converted on first use")]
    manifest, how = _checked(directory, verify=verify)
    # imported here: an engine may not load, which is another finding
    from bimedix_edge.planning.plan import plan_model

    plan = plan_model(directory, manifest, settings)
    text = f"{manifest.name}, {how}, needs about {gb(plan.host.total)}; {plan.line}"
    data = {
        "name": manifest.name,
        "directory": str(directory),
        "hashed": how == _WHOLE,
        "needs_bytes": plan.host.total,
        "plan": plan.line,
    }
    return [Finding("model", text, data=data)]


def _checked(directory: Path, *, verify: bool) -> tuple[Manifest, str]:
    """Check a bundle, by its content if it is small or `verify` is set."""
    total = sum(entry.size_bytes for entry in read_manifest(directory).files.values())
    contents = verify or total <= _SMALL_BYTES
    return verify_bundle(directory, contents=contents), _WHOLE if contents else _SIZES


def store_findings(settings: Settings, *, verify: bool) -> list[Finding]:
    """Return the state of all installed bundles; a damaged one that chat would not use does not stop chat."""
    bundles = Store(settings.store_dir, settings.cache_dir).list()
    rows, faults = [], []
    for bundle in bundles:
        fault = bundle.fault
        if bundle.manifest is not None:
            try:
                _checked(bundle.directory, verify=verify)
            except BundleError as error:
                fault = str(error)
        rows.append({"name": bundle.name, "directory": str(bundle.directory), "fault": fault})
        faults += [] if fault is None else [f"{bundle.name}: {fault}"]
    names = ", ".join(bundle.name for bundle in bundles) or "nothing installed"
    text = f"{names}; damaged: {'; '.join(faults)}" if faults else names
    return [Finding("store", f"{text}; in {settings.store_dir}", data={"bundles": rows})]


def cache_findings(settings: Settings) -> list[Finding]:
    """Return the state of the image cache on the disk."""
    usage = cache_usage(settings.image_cache_dir)
    state = "off" if settings.image_cache == OFF else f"on, up to {settings.image_cache}"
    text = f"{state}; {usage.n_images} images, {usage.size_bytes / 1e6:.1f} MB in {settings.image_cache_dir}"
    return [Finding("image cache", text, data={"images": usage.n_images, "size_bytes": usage.size_bytes})]


def codec_findings() -> list[Finding]:
    """Return the DICOM transfer syntaxes that can be decoded."""
    found = codecs()
    lacking = [f"{codec.name}: {codec.missing}" for codec in found if codec.missing]
    text = f"{sum(codec.available for codec in found)} of {len(found)} transfer syntaxes"
    text += f", but {'; '.join(lacking)}" if lacking else ""
    rows = [
        {"uid": codec.uid, "name": codec.name, "available": codec.available, "missing": codec.missing}
        for codec in found
    ]
    remedy = f"under the GPL: {GPL_COMMAND}" if lacking else None
    return [Finding("DICOM codecs", text, remedy=remedy, data={"transfer_syntaxes": rows})]
