"""`bimedix-edge image`: the picture that the model will see, and the steps that lead to it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.bundle import read_manifest
from bimedix_edge.cli.language import locale_language
from bimedix_edge.cli.options import pack
from bimedix_edge.cli.pictures import Selection, load_all, picture_options, picture_report, show_pictures
from bimedix_edge.cli.terminal import echo
from bimedix_edge.cli.text import one_line
from bimedix_edge.errors import UsageError
from bimedix_edge.imaging.picture import Picture
from bimedix_edge.imaging.preprocess import Preprocessing, square
from bimedix_edge.settings import Settings, load_settings
from bimedix_edge.staging import write_file
from bimedix_edge.store import Store

__all__ = ["image"]


@dataclass(frozen=True)
class _View:
    """The values of --model and --crop."""

    model: str | None
    crop: bool


@click.command()
@click.argument("file", type=click.Path())
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PNG", help="Save what the model sees.")
@picture_options
@click.option("-m", "--model", metavar="NAME|DIR", help="Prepare it for this model.  [default: 336 x 336, padded]")
@click.option("--crop", is_flag=True, help="Cut out the middle instead of padding.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pack("view", _View)
def image(file: str, output: Path | None, selection: Selection, view: _View, as_json: bool) -> None:
    """Show what the model will see of FILE, a picture, a folder of DICOM files or a DICOMDIR.

    Notes and warnings are in English, or in Arabic if the locale is Arabic.
    """
    settings = load_settings({"model": view.model})
    spec = _preprocessing(settings)
    if view.crop:
        spec = replace(spec, aspect="crop")
    pictures = load_all([file], selection)
    if output is not None:
        _check_output(output, len(pictures))
        write_file(output, _png(square(pictures[0].pixels, spec)))
    if as_json:
        rows = [_report(picture, spec) for picture in pictures]
        click.echo(json.dumps({"images": rows}, ensure_ascii=False, indent=2))
        return
    show_pictures(pictures, settings, err=False, language=locale_language())
    for step in {_step(picture, spec): None for picture in pictures}:
        echo(f"The model sees it {step}.")
    if output is not None:
        echo(f"Saved as {one_line(str(output))}; only you can read it.")


def _preprocessing(settings: Settings) -> Preprocessing:
    """Return the constants of the model that was named, or LLaVA's, which BiMediX2 uses."""
    if settings.model is None:
        return Preprocessing()
    return read_manifest(Store(settings.store_dir, settings.cache_dir).find(settings.model)).preprocessing


def _check_output(output: Path, n_pictures: int) -> None:
    if n_pictures > 1:
        raise UsageError(f"-o saves one picture, and there are {n_pictures}. Choose one with --frame N.")
    if output.suffix.lower() != ".png":
        raise UsageError(f"-o saves a PNG file, and {output} has another ending. End the name in .png.")
    if output.exists():
        raise UsageError(f"{output} exists already. Choose another name.")


def _step(picture: Picture, spec: Preprocessing) -> str:
    size, long = spec.image_size_px, max(picture.width_px, picture.height_px)
    scaled = f"scaled to {size} x {size}"
    if spec.aspect == "crop":
        return f"with its shorter side scaled to {size} and its middle {size} x {size} cut out"
    if picture.width_px == picture.height_px:
        return scaled
    return f"padded to {long} x {long} and {scaled}"


def _report(picture: Picture, spec: Preprocessing) -> dict[str, Any]:
    return {
        "sha256": picture.sha256,
        "width_px": picture.width_px,
        "height_px": picture.height_px,
        "n_frames": picture.n_frames,
        **picture_report(picture),
        "seen": {"size_px": spec.image_size_px, "aspect": spec.aspect, "words": _step(picture, spec)},
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
