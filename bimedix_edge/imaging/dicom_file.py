"""DICOM bytes to a dataset, within limits on inflation, nesting and size."""

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
        data: The file, or its start if `pixels` is false.
        name: The file's name in messages.
        pixels: Whether to read the pixel data.
        tags: Keywords of the attributes to read; all by default.

    Returns:
        A `pydicom.dataset.FileDataset`.

    Raises:
        ImageError: It is not a DICOM file that can be read, or it inflates or nests beyond the limits.
    """
    try:
        data = inflated(data, name)
        return pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=not pixels, specific_tags=tags)
    except (ImageError, MemoryError):
        raise
    except RecursionError as error:
        raise ImageError(f"{name} has sequences nested too deep to be read. Export it again.") from error
    except Exception as error:  # at least six kinds; their text may quote values of the file, so it is not shown
        raise ImageError(
            f"{name} is a DICOM file that is damaged ({type(error).__name__}). Export it again."
        ) from error


def transfer_syntax(dataset: Any) -> Any:
    """Return the transfer syntax; a file without meta information does not state it and is uncompressed."""
    meta = getattr(dataset, "file_meta", None)
    stated = meta.get("TransferSyntaxUID") if meta is not None else None
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
