"""The pictures in a folder of DICOM files, from their headers alone. It runs in the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.dicom_file import read_dicom
from bimedix_edge.imaging.dicom_pixels import frame_count
from bimedix_edge.imaging.dicom_tags import allowed_tags
from bimedix_edge.imaging.sniff import sniff

__all__ = ["describe_files"]

# bytes read at first, then more: long headers of many frames, large DICOMDIRs and deflated files need them
_READ_BYTES = (1 << 20, 64 << 20, 512 << 20)
_TAGS = (
    "SOPClassUID SeriesInstanceUID SeriesNumber InstanceNumber NumberOfFrames Rows Columns Modality BodyPartExamined "
    "ViewPosition ImageLaterality Laterality DirectoryRecordSequence"
).split()
_DICOMDIR = "1.2.840.10008.1.3.10"


def describe_files(paths: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Describe the DICOM pictures among files.

    A DICOMDIR stands for the files it lists. Other files, and DICOM files without a picture, are left out.

    Returns:
        One entry per picture: `path`, `series`, `number`, `instance`, `frames`, `size`, `tags`; and the number of
        DICOM files that are damaged or cannot be read.
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
    """Return the header of a DICOM file, or None for any other file."""
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
        # pydicom may read a header that is cut off without an error; Columns is the last tag that a picture needs
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
            # the standard wants capitals, but some systems show the names on a disc in small letters
            places = (root.joinpath(*names).resolve(), root.joinpath(*(name.lower() for name in names)).resolve())
            inside = [file for file in places if file.is_relative_to(root)]
            # a missing file counts as unreadable, too
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
    except Exception:  # a damaged number: the picture is listed, and opening it reports the damage
        entry = {"series": "", "number": 0, "instance": 0, "frames": 1, "size": [0, 0], "tags": {}}
    return {"path": str(path), **entry}
