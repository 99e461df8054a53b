"""Which pictures a folder of DICOM files holds, by series, from their headers alone. It runs in the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.dicom_file import read_dicom
from bimedix_edge.imaging.dicom_pixels import frame_count
from bimedix_edge.imaging.dicom_tags import allowed_tags
from bimedix_edge.imaging.sniff import sniff

__all__ = ["describe_files"]

# headers are at the start; those of many frames, a large DICOMDIR and deflated files need to be read further
_READ_BYTES = (1 << 20, 64 << 20, 512 << 20)
_TAGS = (
    "SOPClassUID SeriesInstanceUID SeriesNumber InstanceNumber NumberOfFrames Rows Columns Modality BodyPartExamined "
    "ViewPosition ImageLaterality Laterality DirectoryRecordSequence"
).split()
_DICOMDIR = "1.2.840.10008.1.3.10"


def describe_files(paths: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Return what is known of the DICOM pictures among files.

    A DICOMDIR stands for the files it lists. What is no DICOM file or no picture is left out.

    Returns:
        An entry a picture: `path`, `series`, `number`, `instance`, `frames`, `size`, `tags`; and how many DICOM files
        are damaged or cannot be read.
    """
    found: list[dict[str, Any]] = []
    n_unreadable = 0
    for path in paths:
        for file in _listed(Path(path)):
            try:
                dataset = _header(file)
            except (OSError, ImageError, MemoryError):
                n_unreadable += 1
                continue
            if dataset is None:
                continue
            if dataset.get("Rows") and dataset.get("Columns"):
                found.append(_entry(file, dataset))
            elif not dataset.get("SOPClassUID"):  # reports and plans have no size, but a class
                n_unreadable += 1
    return found, n_unreadable


def _header(path: Path) -> Any:
    """Return the header of a DICOM file, or None if it is none."""
    for n_bytes in _READ_BYTES:
        with open(path, "rb") as file:
            data = file.read(n_bytes)
        if sniff(data) != "DICOM":
            break
        whole = len(data) < n_bytes or n_bytes == _READ_BYTES[-1]
        try:
            dataset = read_dicom(data, path.name, pixels=False, tags=_TAGS)
        except ImageError:
            if whole:
                raise
            continue
        # what is cut off may be read without a word; Columns is the last tag that is asked for of a picture
        if whole or dataset.get("Columns"):
            return dataset
    return None


def _listed(path: Path) -> list[Path]:
    """Return the files that a DICOMDIR lists inside its own directory, or the file itself."""
    try:
        dataset = _header(path)
    except (OSError, ImageError, MemoryError):
        return [path]  # counted as unreadable there
    meta = getattr(dataset, "file_meta", None)
    if meta is None or str(meta.get("MediaStorageSOPClassUID", "")) != _DICOMDIR:
        return [path]
    root = path.parent.resolve()
    files = []
    for record in dataset.get("DirectoryRecordSequence") or []:
        parts = record.get("ReferencedFileID")
        if parts:
            names = [parts] if isinstance(parts, str) else list(parts)
            # the names are capitals, but some systems show a disc's in small letters
            places = (root.joinpath(*names).resolve(), root.joinpath(*(name.lower() for name in names)).resolve())
            inside = [file for file in places if file.is_relative_to(root)]
            # one that is missing is counted as unreadable, too
            files += ([file for file in inside if file.is_file()] or inside)[:1]
    return files


def _entry(path: Path, dataset: Any) -> dict[str, Any]:
    try:
        entry = {
            "series": str(dataset.get("SeriesInstanceUID") or ""),
            "number": int(dataset.get("SeriesNumber") or 0),
            "instance": int(dataset.get("InstanceNumber") or 0),
            "frames": frame_count(dataset),
            "size": [int(dataset.Columns), int(dataset.Rows)],
            "tags": allowed_tags(dataset),
        }
    except Exception:  # a damaged number: the picture is listed, and says more when it is opened
        entry = {"series": "", "number": 0, "instance": 0, "frames": 1, "size": [0, 0], "tags": {}}
    return {"path": str(path), **entry}
