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

# headers are at the start; what follows is pixels
_HEADER_BYTES = 1 << 20
_TAGS = (
    "SOPClassUID SeriesInstanceUID SeriesNumber InstanceNumber NumberOfFrames Rows Columns Modality BodyPartExamined "
    "ViewPosition ImageLaterality Laterality DirectoryRecordSequence"
).split()
_DICOMDIR = "1.2.840.10008.1.3.10"


def describe_files(paths: list[str]) -> list[dict[str, Any]]:
    """Return one entry a file that holds a DICOM picture: `path`, `series`, `number`, `instance`, `size`, `tags`.

    What is no DICOM file, has no pixels or cannot be read is left out. A DICOMDIR stands for the files it lists.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        for file in _listed(Path(path)):
            dataset = _header(file)
            if dataset is not None and dataset.get("Rows") and dataset.get("Columns"):
                found.append(_entry(file, dataset))
    return found


def _header(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            data = file.read(_HEADER_BYTES)
        return read_dicom(data, path.name, pixels=False, tags=_TAGS) if sniff(data) == "DICOM" else None
    except (OSError, ImageError):
        return None


def _listed(path: Path) -> list[Path]:
    """Return the files that a DICOMDIR lists inside its own directory, or the file itself."""
    dataset = _header(path)
    meta = getattr(dataset, "file_meta", None)
    if meta is None or str(meta.get("MediaStorageSOPClassUID", "")) != _DICOMDIR:
        return [path]
    root = path.parent.resolve()
    files = []
    for record in dataset.get("DirectoryRecordSequence") or []:
        parts = record.get("ReferencedFileID")
        if parts:
            file = root.joinpath(*([parts] if isinstance(parts, str) else parts)).resolve()
            if file.is_relative_to(root) and file.is_file():
                files.append(file)
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
