"""Pictures on the command line: reading them as the options say, choosing a series, showing notes and warnings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bimedix_edge.cli.language import warning_line
from bimedix_edge.cli.options import Command, pack, stack
from bimedix_edge.cli.terminal import echo, reorders
from bimedix_edge.cli.text import one_line
from bimedix_edge.errors import UsageError
from bimedix_edge.imaging.picture import MAX_FRAMES, Picture, load_pictures
from bimedix_edge.imaging.series import Series, find_series, holds_series
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.imaging.words import Language
from bimedix_edge.settings import Settings

__all__ = ["Selection", "describe", "load_all", "picture_options", "picture_report", "show_pictures"]

_PICTURE: dict[Language, tuple[str, str]] = {"en": ("", "image {n}: "), "ar": ("الصورة: ", "الصورة {n}: ")}


@dataclass(frozen=True)
class Selection:
    """The values of --window, --frame and --series."""

    window: str | None = None
    frame: str = "middle"
    series: int | None = None


def picture_options(command: Command) -> Command:
    """Add --window, --frame and --series to a command, which gets them as one argument, `selection`."""
    return stack(
        click.option("--window", metavar="NAME|CENTER/WIDTH", help=f"For grey DICOM pictures: {', '.join(PRESETS)}."),
        click.option(
            "--frame", metavar="N|middle|all", default="middle", help="In a file with several.  [default: middle]"
        ),
        click.option("--series", type=int, metavar="N", help="In a folder or DICOMDIR with several."),
    )(pack("selection", Selection)(command))


def load_all(paths: Sequence[str | Path], selection: Selection) -> list[Picture]:
    """Read pictures as the options say; from a folder or a DICOMDIR, the series that the user chooses.

    Raises:
        ImageError: A picture cannot be read.
        UsageError: An option does not fit, or a series must be chosen and there is no terminal to ask on.
    """
    frame = _frame(selection.frame)
    pictures: list[Picture] = []
    for given in paths:
        path = Path(given)
        if holds_series(path):
            chosen = _choose(find_series(path), selection.series, path)
            read = _from_series(chosen, frame, selection.window)
            pictures += [replace(picture, warnings=(*chosen.warnings(), *picture.warnings)) for picture in read]
        elif selection.series is not None:
            raise UsageError(f"{path} is a file, and --series needs a folder or a DICOMDIR. Leave --series out.")
        else:
            pictures += load_pictures(path, frame=frame, window=selection.window)
    return pictures


def describe(picture: Picture, language: Language = "en") -> list[str]:
    """Return lines: what a picture is and which steps led to its pixels, then one for each warning."""
    return [picture.words(language), *(warning_line(warning, language) for warning in picture.warnings)]


def show_pictures(pictures: Sequence[Picture], settings: Settings, *, err: bool, language: Language = "en") -> None:
    """Print what each picture is, numbered if there are several; file names may name patients and are left out.

    Args:
        pictures: The pictures.
        settings: Their `bidi` says whether Arabic lines are reordered.
        err: Whether to print to standard error.
        language: Language of notes and warnings.
    """
    single, numbered = _PICTURE[language]
    reorder = reorders(settings, sys.stderr if err else sys.stdout)
    for n, picture in enumerate(pictures, 1):
        first, *others = describe(picture, language)
        label = numbered.format(n=n) if len(pictures) > 1 else single
        echo("\n".join([f"{label}{first}", *others]), err=err, reorder=reorder)


def picture_report(picture: Picture) -> dict[str, Any]:
    """Return the fields of a picture in JSON output beside its hash and size."""
    return {
        "format": picture.format,
        "notes": [note.report() for note in picture.notes],
        "warnings": [warning.report() for warning in picture.warnings],
        "tags": picture.tags,
    }


def _frame(text: str) -> int | str:
    if text in ("middle", "all"):
        return text
    if not text.isdecimal() or not text.isascii():
        raise UsageError(f"--frame is {text!r}, which is not a frame. Write a number from 1, middle or all.")
    return int(text)


def _choose(found: list[Series], number: int | None, path: Path) -> Series:
    if number is None and len(found) > 1:
        number = _ask(found, path)
    number = 1 if number is None else number
    if not 1 <= number <= len(found):
        raise UsageError(f"{path} has series 1 to {len(found)}, so there is no series {number}. Choose another.")
    return found[number - 1]


def _ask(found: list[Series], path: Path) -> int:
    lines = [f"{number}) {series.words()}" for number, series in enumerate(found, 1)]
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{path} holds {len(found)} series: {'; '.join(lines)}. Choose one with --series N.")
    echo("\n".join(lines), err=True)

    def number(answer: str) -> int:
        if answer.strip().isdecimal() and 1 <= int(answer) <= len(found):
            return int(answer)
        raise click.UsageError(f"{one_line(answer)!r} is not a number from 1 to {len(found)}.")

    try:
        return int(click.prompt("Which series", value_proc=number, err=True))
    except click.Abort:
        echo("", err=True)  # the end of the input leaves the line of the question unfinished
        raise


def _from_series(series: Series, frame: int | str, window: str | None) -> list[Picture]:
    """Return pictures of a series as if it were one file with many frames."""
    if len(series.files) == 1:
        return load_pictures(series.files[0], frame=frame, window=window)
    n_files = len(series.files)
    if frame == "all":
        if n_files > MAX_FRAMES:
            raise UsageError(
                f"The series has {n_files} pictures, more than the {MAX_FRAMES} that can be read at once. Choose one "
                "with --frame N."
            )
        return [_numbered(series, number, window) for number in range(1, n_files + 1)]
    number = (n_files + 1) // 2 if frame == "middle" else int(frame)
    if not 1 <= number <= n_files:
        raise UsageError(f"The series has frames 1 to {n_files}, so there is no frame {frame}. Choose another.")
    return [_numbered(series, number, window, middle=frame == "middle")]


def _numbered(series: Series, number: int, window: str | None, *, middle: bool = False) -> Picture:
    (picture,) = load_pictures(series.files[number - 1], window=window)
    return replace(picture, notes=(series.place(number, middle=middle), *picture.notes))
