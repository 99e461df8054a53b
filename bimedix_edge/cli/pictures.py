"""Pictures on the command line: which frame, window and series, asking where somebody can be asked, and words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from bimedix_edge.cli.terminal import echo
from bimedix_edge.cli.text import one_line
from bimedix_edge.errors import UsageError
from bimedix_edge.imaging.picture import MAX_FRAMES, Picture, load_pictures
from bimedix_edge.imaging.series import Series, find_series, holds_series
from bimedix_edge.imaging.window import PRESETS

__all__ = ["describe", "load_all", "picture_options", "picture_report", "show_pictures"]

Command = TypeVar("Command", bound=Callable[..., Any])


def picture_options(command: Command) -> Command:
    """Add --window, --frame and --series."""
    for option in (
        click.option("--series", type=int, metavar="N", help="Of a folder or DICOMDIR with several."),
        click.option("--frame", metavar="N|middle|all", default="middle", help="Of several.  [default: middle]"),
        click.option("--window", metavar="NAME|CENTER/WIDTH", help=f"Of grey DICOM pictures: {', '.join(PRESETS)}."),
    ):
        command = option(command)
    return command


def load_all(paths: Sequence[str | Path], frame: str, window: str | None, series: int | None) -> list[Picture]:
    """Read pictures as the options say; of a folder or a DICOMDIR, the series that the user chooses.

    Raises:
        ImageError: one cannot be read.
        UsageError: an option does not fit, or a series must be chosen and nobody can be asked.
    """
    wanted = _frame(frame)
    pictures: list[Picture] = []
    for given in paths:
        path = Path(given)
        if holds_series(path):
            chosen = _choose(find_series(path), series, path)
            pictures += [_warned(picture, chosen) for picture in _from_series(chosen, wanted, window)]
        elif series is not None:
            raise UsageError(f"Expected a folder or a DICOMDIR for --series, but {path} is a file; leave it out.")
        else:
            pictures += load_pictures(path, frame=wanted, window=window)
    return pictures


def describe(picture: Picture) -> list[str]:
    """Return lines: what a picture is and what was done to it, then one for each warning."""
    return [picture.words(), *(f"Warning: {warning}." for warning in picture.warnings)]


def show_pictures(pictures: Sequence[Picture], *, err: bool) -> None:
    """Print what each picture is, numbered if there are several; file names may name patients and are left out."""
    for number, picture in enumerate(pictures, 1):
        first, *others = describe(picture)
        echo("\n".join([f"image {number}: {first}" if len(pictures) > 1 else first, *others]), err=err)


def picture_report(picture: Picture) -> dict[str, Any]:
    """Return what JSON output says of a picture beside its hash and size."""
    return {
        "format": picture.format,
        "notes": list(picture.notes),
        "warnings": list(picture.warnings),
        "tags": picture.tags,
    }


def _frame(text: str) -> int | str:
    if text in ("middle", "all"):
        return text
    if not text.isdecimal() or not text.isascii():
        raise UsageError(f"Expected a frame from 1 on, middle or all, but --frame is {text!r}; correct it.")
    return int(text)


def _choose(found: list[Series], number: int | None, path: Path) -> Series:
    if number is None and len(found) > 1:
        number = _ask(found, path)
    number = 1 if number is None else number
    if not 1 <= number <= len(found):
        raise UsageError(f"Expected a series from 1 to {len(found)} in {path}, but {number} was asked for.")
    return found[number - 1]


def _ask(found: list[Series], path: Path) -> int:
    lines = [f"{number}) {series.words()}" for number, series in enumerate(found, 1)]
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"Expected one series, but {path} holds {len(found)}: {'; '.join(lines)}; choose one with --series N."
        )
    echo("\n".join(lines), err=True)

    def number(answer: str) -> int:
        if answer.strip().isdecimal() and 1 <= int(answer) <= len(found):
            return int(answer)
        raise click.UsageError(f"Expected a number from 1 to {len(found)}, but it is {one_line(answer)!r}.")

    try:
        return int(click.prompt("Which series", value_proc=number, err=True))
    except click.Abort:
        echo("", err=True)  # the end of the input leaves the question's line unfinished
        raise


def _from_series(series: Series, frame: int | str, window: str | None) -> list[Picture]:
    """Return pictures of a series as if it were one file with so many frames."""
    if len(series.files) == 1:
        return load_pictures(series.files[0], frame=frame, window=window)
    n_files = len(series.files)
    if frame == "all":
        if n_files > MAX_FRAMES:
            raise UsageError(
                f"Expected at most {MAX_FRAMES} pictures at once, but the series has {n_files}; choose one with "
                "--frame N."
            )
        return [_numbered(path, number, n_files, window, "") for number, path in enumerate(series.files, 1)]
    number = (n_files + 1) // 2 if frame == "middle" else int(frame)
    if not 1 <= number <= n_files:
        raise UsageError(
            f"Expected a frame from 1 to {n_files}, for the series has so many, but {frame} was asked for."
        )
    return [_numbered(series.files[number - 1], number, n_files, window, ", the middle one" * (frame == "middle"))]


def _warned(picture: Picture, series: Series) -> Picture:
    """Return a picture of a series with a word about what may be missing from that."""
    if not series.n_unreadable:
        return picture
    files = "a DICOM file" if series.n_unreadable == 1 else f"{series.n_unreadable} DICOM files"
    return replace(picture, warnings=(f"{files} beside it cannot be read and may belong to it", *picture.warnings))


def _numbered(path: Path, number: int, total: int, window: str | None, remark: str) -> Picture:
    (picture,) = load_pictures(path, window=window)
    return replace(picture, notes=(f"picture {number} of {total} of the series{remark}", *picture.notes))
