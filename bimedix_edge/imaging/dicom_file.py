"""DICOM bytes to a dataset, within bounds: nothing inflates, nests or grows as its author likes."""

from __future__ import annotations

import io
from typing import Any

import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.dicom_bounds import inflated

__all__ = ["read_dicom", "transfer_syntax"]


def read_dicom(data: bytes, name: str, *, pixels: bool = True, tags: list[str] | None = None) -> Any:
    """Return the dataset of a file.

    Args:
        data: the file, or its start if `pixels` is false.
        name: what messages call it.
        pixels: whether the pixel data are wanted.
        tags: read only these, by keyword; all by default.

    Returns:
        A `pydicom.dataset.FileDataset`.

    Raises:
        ImageError: it is no DICOM file that can be read, or it inflates or nests beyond all use.
    """
    try:
        data = inflated(data, name)
        return pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=not pixels, specific_tags=tags)
    except (ImageError, MemoryError):
        raise
    except RecursionError as error:
        raise ImageError(
            f"Expected sequences nested a few levels deep, but {name} nests them beyond reading; export it again."
        ) from error
    except Exception as error:  # six kinds at least; their text may hold values of the file, so it is not shown
        raise ImageError(
            f"Expected a whole DICOM file, but {name} is damaged ({type(error).__name__}); export it again."
        ) from error


def transfer_syntax(dataset: Any) -> Any:
    """Return the transfer syntax, which a file without meta information does not state: then it is uncompressed."""
    meta = getattr(dataset, "file_meta", None)
    stated = meta.get("TransferSyntaxUID") if meta is not None else None
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
