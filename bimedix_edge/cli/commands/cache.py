"""`bimedix-edge cache`: the image embeddings on the disk."""

from __future__ import annotations

import json

import click

from bimedix_edge.engine.image_cache import cache_usage, clear_cache
from bimedix_edge.settings import OFF, load_settings

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Show or erase the image embeddings on the disk; there are none unless `image_cache` is set."""


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Show whether the image cache is on, its directory and its size."""
    settings = load_settings()
    usage = cache_usage(settings.image_cache_dir)
    if as_json:
        report = {
            "image_cache": settings.image_cache,
            "directory": str(settings.image_cache_dir),
            "images": usage.n_images,
            "size_bytes": usage.size_bytes,
        }
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
        return
    state = "off" if settings.image_cache == OFF else f"on, up to {settings.image_cache}"
    click.echo(f"image cache {state}: {usage.n_images} images, {usage.size_bytes / 1e6:.1f} MB")
    click.echo(f"in {settings.image_cache_dir}")


@cache.command()
def clear() -> None:
    """Erase the image cache."""
    settings = load_settings()
    found = clear_cache(settings.image_cache_dir)
    click.echo(f"erased {found.n_images} images, {found.size_bytes / 1e6:.1f} MB, in {settings.image_cache_dir}")
