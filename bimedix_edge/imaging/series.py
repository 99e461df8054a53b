"""The series of DICOM pictures in a folder or a DICOMDIR, for the user to choose from."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.isolation import describe_isolated
from bimedix_edge.imaging.notes import Note, note
from bimedix_edge.imaging.sniff import sniff

__all__ = ["Series", "find_series", "holds_series"]

_MAX_FILES = 5000
_SNIFF_BYTES = 4096
# the SOP class of a DICOMDIR, and the start of the element after it
_DICOMDIR = b"1.2.840.10008.1.3.10\x02\x00"


@dataclass(frozen=True)
class Series:
    """Pictures of one series, ordered by their instance numbers.

    Attributes:
        files: One file per picture, or a file of many frames.
        n_frames: Number of pictures.
        tags: Modality, body part, view and laterality, as far as all pictures share them.
        sizes: Width and height of most of them, in pixels.
        n_unreadable: DICOM files beside them that cannot be read; they may belong to this series or to another.
    """

    files: tuple[Path, ...]
    n_frames: int
    tags: dict[str, str]
    sizes: tuple[int, int]
    n_unreadable: int = 0

    def words(self) -> str:
        """Return a description without anything that could name a patient."""
        kind = ", ".join(self.tags.values()) or "unknown kind"
        return f"{kind}: {self.n_frames} picture{'s' * (self.n_frames > 1)} of {self.sizes[0]} x {self.sizes[1]}"

    def place(self, number: int, *, middle: bool) -> Note:
        """Return a note that says which of its pictures one is.

        Args:
            number: Number of the picture, from 1.
            middle: Whether it was chosen as the middle one.
        """
        return note("series_middle_picture" if middle else "series_picture", number=number, total=len(self.files))

    def warnings(self) -> tuple[Note, ...]:
        """Return a warning if pictures may be missing from the series."""
        return (note("unreadable_files", n=self.n_unreadable),) if self.n_unreadable else ()


def holds_series(path: Path) -> bool:
    """Return whether `path` is a directory or a DICOMDIR, from which a picture has to be chosen."""
    if path.is_dir():
        return True
    if not path.is_file():  # a pipe can be read only once
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(_SNIFF_BYTES)
    except (OSError, ValueError):
        return False  # opening it as a picture reports why
    return sniff(start) == "DICOM" and _DICOMDIR in start


def find_series(path: Path) -> list[Series]:
    """Return the series in a directory and below, or those in a DICOMDIR, by series number.

    Raises:
        ImageError: There is no DICOM picture, or there are too many files.
    """
    files = [str(path)] if path.is_file() else _files(path)
    entries, n_unreadable = describe_isolated(files, path.name)
    if not entries:
        damaged = f" that can be read ({n_unreadable} cannot)" if n_unreadable else ""
        where = "is a directory" if path.is_dir() else "lists files"
        raise ImageError(f"{path} {where} without a DICOM picture{damaged}. Name an image file.")
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((int(entry["number"]), str(entry["series"])), []).append(entry)
    return [_series(groups[key], n_unreadable) for key in sorted(groups)]


def _series(entries: list[dict[str, Any]], n_unreadable: int) -> Series:
    ordered = sorted(entries, key=lambda entry: (entry["instance"], entry["path"]))
    first: dict[str, str] = ordered[0]["tags"]
    shared = {
        name: value for name, value in first.items() if all(entry["tags"].get(name) == value for entry in ordered)
    }
    sizes = Counter((int(entry["size"][0]), int(entry["size"][1])) for entry in ordered)
    n_frames = sum(int(entry["frames"]) for entry in ordered)
    files = tuple(Path(entry["path"]) for entry in ordered)
    return Series(files, n_frames, shared, sizes.most_common(1)[0][0], n_unreadable)


def _files(directory: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(directory):
        folders.sort()
        places = (os.path.join(folder, name) for name in sorted(names) if name != "DICOMDIR")
        found += [place for place in places if os.path.isfile(place)]  # opening a pipe would wait for its writer
        if len(found) > _MAX_FILES:
            raise ImageError(f"{directory} holds more than {_MAX_FILES} files. Name a folder in it.")
    return found
