"""The format of a file by its content; names and extensions are ignored."""

from __future__ import annotations

__all__ = ["RASTERS", "READABLE", "sniff"]

RASTERS = ("PNG", "JPEG", "TIFF", "WebP", "BMP", "GIF")
READABLE = (*RASTERS, "DICOM")

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (128, b"DICM", "DICOM"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "BigTIFF"),
    (8, b"WEBP", "WebP"),
    (0, b"BM", "BMP"),
    (4, b"ftyp", "HEIF, AVIF or video"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<svg", "SVG"),
    (0, b"\x5c\x01\x00\x00", "NIfTI"),
)
# a DICOM file without preamble starts with an element of group 2 or 8, little or big endian
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_LONGEST_FIRST_VALUE = 1024


def sniff(data: bytes) -> str | None:
    """Return the name of the format whose signature `data` has, or None."""
    for offset, signature, name in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return name
    return "DICOM" if _is_bare_dicom(data) else None


def _is_bare_dicom(data: bytes) -> bool:
    """Return whether `data` starts with a DICOM element: a tag, then two capitals (explicit VR) or a small length."""
    if len(data) < 64 or data[:2] not in _FIRST_GROUPS:
        return False
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    return explicit or (data[:2] != b"\x00\x08" and int.from_bytes(data[4:8], "little") <= _LONGEST_FIRST_VALUE)
