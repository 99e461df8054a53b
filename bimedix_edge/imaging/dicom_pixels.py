"""One frame of a dataset, decoded by the codecs that are installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import JPEGExtended12Bit, RLELossless

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.codestream import HeaderSize, check_codestream, check_rle
from bimedix_edge.imaging.decoded import check_size
from bimedix_edge.imaging.dicom_file import transfer_syntax

__all__ = ["check_header", "decode_frame", "frame_count", "through_palette"]

_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def frame_count(dataset: Any) -> int:
    """Return the number of frames in the header; 1 if it states no number."""
    return max(int(dataset.get("NumberOfFrames") or 1), 1)


def check_header(dataset: Any, name: str) -> None:
    """Refuse a dataset without a picture, or with a header that contradicts itself, before anything is decoded.

    Raises:
        ImageError: The message says what is missing or wrong.
    """
    if not any(keyword in dataset for keyword in _PIXELS):
        raise ImageError(f"{name} has no pixels: it is {_kind(dataset)}. Choose an image file.")
    needed = (*_NEEDED, *(("PixelRepresentation",) if "PixelData" in dataset else ()))
    missing = [keyword for keyword in needed if dataset.get(keyword) is None]
    if missing:
        raise ImageError(f"{name} has a DICOM header that does not state {', '.join(missing)}. Export it again.")
    check_size(int(dataset.Columns), int(dataset.Rows), name)
    photometric = dataset.get("PhotometricInterpretation")
    if not photometric:
        raise ImageError(
            f"{name} does not state its photometric interpretation, so black and white cannot be told apart. Export it "
            "again."
        )
    _check_samples(str(photometric), int(dataset.SamplesPerPixel), name)
    if "PixelData" in dataset and not 0 < int(dataset.get("BitsStored") or 0) <= int(dataset.BitsAllocated):
        raise ImageError(
            f"{name} states {dataset.get('BitsStored')} bits stored, and 1 to {dataset.BitsAllocated} are possible. "
            "Export it again."
        )


def decode_frame(dataset: Any, index: int, name: str) -> NDArray[Any]:
    """Return the stored values of one frame.

    Args:
        dataset: A dataset that passed `check_header`.
        index: Number of the frame, from 0.
        name: The file's name in messages.

    Returns:
        (rows, columns) of the stored type, or (rows, columns, 3) RGB.

    Raises:
        ImageError: No decoder is installed for it, or the pixel data are truncated or damaged.
    """
    syntax = transfer_syntax(dataset)
    decoder = _decoder(dataset, syntax, name)
    if not syntax.is_encapsulated:
        _check_length(dataset, name)
    if getattr(dataset, "file_meta", None) is None or "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = dataset.file_meta if getattr(dataset, "file_meta", None) else _empty_meta()
        dataset.file_meta.TransferSyntaxUID = syntax
    aligned = _is_aligned(dataset, syntax)
    try:
        if syntax.is_encapsulated:
            _check_frame(dataset, index, syntax, name)
        pixels, _ = decoder.as_array(dataset, index=index, allow_excess_frames=False, correct_unused_bits=aligned)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # each codec has its own; their text may quote values of the file
        raise ImageError(
            f"{name} is damaged or truncated: frame {index + 1} is not whole {syntax.name} data. Export it again."
        ) from error
    return np.asarray(pixels) if aligned else _shifted(pixels, dataset)


def _check_frame(dataset: Any, index: int, syntax: Any, name: str) -> None:
    """Compare a compressed frame with the header; only here is it whole, and no other frame is decoded."""
    offsets = [dataset.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    frame = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=frame_count(dataset),
        extended_offsets=tuple(offsets) if all(offsets) and len(offsets[0]) == len(offsets[1]) else None,
    )
    stated = HeaderSize(int(dataset.Columns), int(dataset.Rows), int(dataset.SamplesPerPixel))
    if syntax == RLELossless:
        check_rle(frame, stated, (int(dataset.BitsAllocated) + 7) // 8, name)
    else:
        check_codestream(frame, stated, name)


def _is_aligned(dataset: Any, syntax: Any) -> bool:
    """Return whether values fill the lowest bits, as all do except in some files from before 2014; PS3.5 8.1.1."""
    if "PixelData" not in dataset or (syntax.is_encapsulated and syntax != RLELossless):
        return True
    # a High Bit outside the bits allocated, or without room for the bits stored, is ignored
    return not int(dataset.BitsStored) <= int(dataset.get("HighBit") or 0) < int(dataset.BitsAllocated)


def _shifted(pixels: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Return values whose highest bit is the header's High Bit."""
    highest = 8 * pixels.dtype.itemsize - 1
    unused = highest - int(dataset.HighBit)
    return (pixels << unused) >> (highest + 1 - int(dataset.BitsStored))


def through_palette(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Return the colours of a PALETTE COLOR picture.

    Args:
        stored: (rows, columns), indices.
        dataset: A dataset with a palette. Its byte order is corrected here, since pydicom ignores big endian files.

    Returns:
        (rows, columns, 3) uint8 or uint16.
    """
    if dataset.original_encoding[1] is False:
        for colour in ("Red", "Green", "Blue"):
            keyword = f"{colour}PaletteColorLookupTableData"
            if keyword in dataset and dataset[keyword].VR == "OW":
                swapped = np.frombuffer(dataset[keyword].value, ">u2").astype("<u2")
                dataset[keyword].value = swapped.tobytes()
    return apply_color_lut(stored, dataset)[..., :3]


def _empty_meta() -> Any:
    from pydicom.dataset import FileMetaDataset

    return FileMetaDataset()


def _kind(dataset: Any) -> str:
    stated = dataset.get("SOPClassUID")
    # the "name" of an unknown class is the file's own text
    known = stated is not None and not isinstance(stated, list) and stated.name != str(stated)
    return f"a DICOM object of the kind {stated.name}" if known else "a DICOM object"


def _check_samples(photometric: str, n_samples: int, name: str) -> None:
    if photometric not in (*_GREY, *_COLOUR):
        is_code = photometric.replace("_", "").isalnum() and len(photometric) <= 16
        shown = photometric if is_code else "no term of the standard"
        raise ImageError(
            f"{name} has a photometric interpretation that is not supported: {shown}. Supported are "
            f"{', '.join((*_GREY, *_COLOUR))}. Export it as grey or RGB."
        )
    wanted = 1 if photometric in _GREY else 3
    if n_samples != wanted:
        raise ImageError(
            f"{name} has {'colour' if wanted == 1 else 'no colour'} where its header states {photometric}: {n_samples} "
            f"values per pixel, not {wanted}. Export it again."
        )


def _decoder(dataset: Any, syntax: Any, name: str) -> Any:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        known = syntax.name if syntax.name != str(syntax) else "an unknown transfer syntax"
        raise ImageError(
            f"{name} is compressed as {known}, for which there is no decoder. Export it uncompressed."
        ) from error
    twelve = syntax == JPEGExtended12Bit and int(dataset.get("BitsStored") or 8) > 8
    if not decoder.is_available or (twelve and importlib.util.find_spec("libjpeg") is None):
        raise ImageError(
            f"{name} needs a decoder for {syntax.name}{', 12 bit' if twelve else ''}, which is not installed. Add one "
            "with `pip install 'bimedix-edge[dicom-gpl]'`, or export the picture uncompressed."
        )
    return decoder


def _check_length(dataset: Any, name: str) -> None:
    """Refuse uncompressed pixel data that are too short, and say how many rows are missing."""
    keyword = next(keyword for keyword in _PIXELS if keyword in dataset)
    given = len(dataset[keyword].value or b"")
    rows, n_frames = int(dataset.Rows), frame_count(dataset)
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else int(dataset.SamplesPerPixel)
    row_bits = int(dataset.Columns) * samples * int(dataset.BitsAllocated)
    expected = (row_bits * rows * n_frames + 7) // 8
    if given < expected:
        missing = -(-(expected - given) * 8 // row_bits)
        of = f"{rows * n_frames}" if n_frames == 1 else f"{rows * n_frames} in {n_frames} frames"
        raise ImageError(
            f"{name} has {given} of {expected} bytes of pixels: {missing} of {of} rows are missing. Copy or export it "
            "again."
        )
