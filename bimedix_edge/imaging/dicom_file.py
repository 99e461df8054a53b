"""DICOM bytes to a dataset, within bounds: nothing inflates, nests or grows as its author likes."""

from __future__ import annotations

import io
import zlib
from typing import Any

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from bimedix_edge.errors import ImageError

__all__ = ["read_dicom", "transfer_syntax"]

# a picture that deflates to less than a hundredth is blank, or made to fill the memory
_MAX_INFLATION = 100
_ALWAYS_INFLATED_BYTES = 16 << 20
_META_START = 132
# these have a length of 4 bytes after 2 that are reserved, all others one of 2; PS3.5 7.1.2
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


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
        data = _inflated(data, name)
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


def _inflated(data: bytes, name: str) -> bytes:
    """Return a deflated file as the same file uncompressed; others as they are."""
    start = data.find(DeflatedExplicitVRLittleEndian.encode(), 0, 4096)
    if data[128:132] != b"DICM" or start < 0:
        return data
    body = _meta_end(data)
    if start >= body:
        return data
    limit = max(_ALWAYS_INFLATED_BYTES, _MAX_INFLATION * len(data))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(data[body:], limit)
    if inflater.unconsumed_tail or not inflater.eof:
        reason = (
            f"it inflates to more than {_MAX_INFLATION} times its size"
            if len(plain) >= limit
            else "its deflated data end too early"
        )
        raise ImageError(f"Expected a whole DICOM file, but {name} is unusable: {reason}; export it uncompressed.")
    uncompressed = ExplicitVRLittleEndian.encode().ljust(len(DeflatedExplicitVRLittleEndian), b"\0")
    return data[:start] + uncompressed + data[start + len(uncompressed) : body] + plain


def _meta_end(data: bytes) -> int:
    """Return where the elements of group 2 end; their stated length is missing in some files."""
    position = _META_START
    while data[position : position + 2] == b"\x02\x00":
        long = data[position + 4 : position + 6] in _LONG_VRS
        value = position + (12 if long else 8)
        length = int.from_bytes(data[value - (4 if long else 2) : value], "little")
        position = value + length
    return position
