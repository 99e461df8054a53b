"""The report at the end of a conversion, as text."""

from __future__ import annotations

from pathlib import Path

import click

from bimedix_edge.bundle import Manifest, Quality

__all__ = ["quality_text", "report"]


def report(manifest: Manifest, target: Path) -> None:
    """Print the files of a new bundle, the loss of quality, and its directory."""
    for role, entry in sorted(manifest.files.items()):
        click.echo(f"{role:8} {entry.path}  {entry.size_bytes / 1e6:.1f} MB  sha256 {entry.sha256}")
    click.echo(quality_text(manifest.quality))
    click.echo(f"{manifest.name} is in {target}")
    click.echo(f"\n{manifest.licence} · {manifest.notice}")


def quality_text(quality: Quality) -> str:
    """Return a table with the error by type, the worst tensors and the vision graph."""
    lines = [
        "",
        f"{'type':8} {'tensors':>7} {'error':>9} {'cosine':>12}   against the checkpoint; large tensors are sampled",
    ]
    for kind, found in quality.types.items():
        lines.append(f"{kind:8} {found.n_tensors:7d} {found.relative_rms:9.2%} {found.cosine:12.9f}")
    worst = sorted(quality.worst.items(), key=lambda item: -item[1].relative_rms)
    lines += [f"worst    {found.relative_rms:.2%}  {found.cosine:.9f}  {name}" for name, found in worst]
    vision = quality.vision
    lines.append(
        f"vision   cosine per token against float32 on {vision.n_images} pictures: lowest {vision.cosine_min:.6f}, "
        f"mean {vision.cosine_mean:.6f} ({vision.choice})"
    )
    return "\n".join([*lines, ""])
