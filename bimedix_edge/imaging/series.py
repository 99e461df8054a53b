"""The series of DICOM pictures in a folder or a DICOMDIR, for a user to choose from."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.isolation import describe_isolated
from bimedix_edge.imaging.sniff import sniff

__all__ = ["Series", "find_series", "holds_series"]

_MAX_FILES = 5000
_SNIFF_BYTES = 4096
# the class of the file, and the start of the element after it
_DICOMDIR = b"1.2.840.10008.1.3.10\x02\x00"


@dataclass(frozen=True)
class Series:
    """Pictures that belong together, in the order in which they were numbered.

    Attributes:
        files: one a picture, or a file of many frames.
        n_frames: how many pictures these are.
        tags: modality, body part, view and laterality, as far as all share them.
        sizes: width and height of most of them, in pixels.
        n_unreadable: how many DICOM files beside them cannot be read, of this series or of another.
    """

    files: tuple[Path, ...]
    n_frames: int
    tags: dict[str, str]
    sizes: tuple[int, int]
    n_unreadable: int = 0

    def words(self) -> str:
        """Return what it is, without anything that could name a patient."""
        told = ", ".join(self.tags.values()) or "unknown kind"
        return f"{told}: {self.n_frames} picture{'s' * (self.n_frames > 1)} of {self.sizes[0]} x {self.sizes[1]}"


def holds_series(path: Path) -> bool:
    """Return whether `path` is a directory or a DICOMDIR, and so something to choose a picture from."""
    if path.is_dir():
        return True
    if not path.is_file():  # what comes through a pipe can be read but once
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(_SNIFF_BYTES)
    except (OSError, ValueError):
        return False  # the one who opens it says why
    return sniff(start) == "DICOM" and _DICOMDIR in start


def find_series(path: Path) -> list[Series]:
    """Return the series in a directory and below, or those that a DICOMDIR lists, by their number.

    Raises:
        ImageError: there is no DICOM picture, or there are too many files.
    """
    files = [str(path)] if path.is_file() else _files(path)
    entries, n_unreadable = describe_isolated(files, path.name)
    if not entries:
        damaged = f" that can be read ({n_unreadable} cannot)" if n_unreadable else ""
        raise ImageError(
            f"Expected an image file, but {path} {'is a directory' if path.is_dir() else 'lists files'} without a "
            f"DICOM picture{damaged}; name an image file."
        )
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
            raise ImageError(f"Expected at most {_MAX_FILES} files, but {directory} holds more; name a folder in it.")
    return found
