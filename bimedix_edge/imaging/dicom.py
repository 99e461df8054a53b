"""DICOM bytes to 8-bit pixels, as a viewer shows them, with a note for every step.

The order is the standard's: stored values, modality transformation, window or VOI look-up table, then black to white.
MONOCHROME1 is inverted; a palette and YBR become RGB. Decoding runs in a process of its own (see `isolation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.errors import ImageError, UsageError
from bimedix_edge.imaging.decoded import Decoded
from bimedix_edge.imaging.dicom_file import read_dicom
from bimedix_edge.imaging.dicom_lut import look_up_table
from bimedix_edge.imaging.dicom_pixels import check_header, decode_frame, frame_count, through_palette
from bimedix_edge.imaging.dicom_tags import allowed_tags, frame_value, privacy_warnings
from bimedix_edge.imaging.grey import Display, Lut, Range, Rescale, render, value_range
from bimedix_edge.imaging.notes import Note, note
from bimedix_edge.imaging.window import LINEAR, LINEAR_EXACT, SIGMOID, Window

__all__ = ["decode_dicom"]


def decode_dicom(data: bytes, name: str, frame: int | str, window: Window | None) -> Decoded:
    """Decode one frame of a DICOM file.

    Args:
        data: The whole file.
        name: The file's name in messages.
        frame: Number of a frame, from 1, or `middle`.
        window: Replaces the file's own window; None keeps that.

    Returns:
        Grey or RGB pixels, with the modality, body part, view and laterality that the header states.

    Raises:
        ImageError: The file cannot be shown; the message says why.
        UsageError: The frame does not exist, or the window is for a colour picture.
    """
    dataset = read_dicom(data, name)
    try:
        return _decode(dataset, name, frame, window)
    except (ImageError, UsageError, MemoryError):
        raise
    except Exception as error:  # pydicom converts values on use; its errors quote them, ours must not
        raise ImageError(
            f"{name} has a DICOM header that is damaged ({type(error).__name__}). Export it again."
        ) from error


def _decode(dataset: Any, name: str, frame: int | str, window: Window | None) -> Decoded:
    check_header(dataset, name)
    n_frames = frame_count(dataset)
    index, notes = _frame_index(frame, n_frames, name)
    tags = allowed_tags(dataset, index)
    warnings = privacy_warnings(dataset)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        stored = decode_frame(dataset, index, name)
        display = _display(dataset, index, stored, window, name)
        notes += _grey_notes(display, stored)
        tags["window"] = str(_voi_note(display.voi))
        if window is not None and window.name and tags.get("modality") not in (None, "CT"):
            warnings.append(note("window_not_for_modality", preset=window.name, modality=tags["modality"]))
        pixels = render(stored, display)
    elif window is not None:
        raise UsageError(f"{name} is {photometric}, and a window fits grey pictures only. Leave the window out.")
    else:
        pixels = _colour(dataset, index, photometric, notes, name)
    if any(f"{group:04x}" for group in range(0x6000, 0x6020, 2) if (group << 16 | 0x3000) in dataset):
        notes.append(note("overlays_not_drawn"))
    return Decoded(pixels, tuple(notes), tuple(warnings), tags, n_frames)


def _frame_index(frame: int | str, n_frames: int, name: str) -> tuple[int, list[Note]]:
    if frame == "middle":
        index = (n_frames - 1) // 2
        return index, [note("middle_frame", frame=index + 1, n_frames=n_frames)] if n_frames > 1 else []
    if not 1 <= int(frame) <= n_frames:
        frames = "one frame" if n_frames == 1 else f"frames 1 to {n_frames}"
        raise UsageError(f"{name} has {frames}, so there is no frame {frame}. Choose another.")
    return int(frame) - 1, [note("frame", frame=int(frame), n_frames=n_frames)] if n_frames > 1 else []


def _display(dataset: Any, index: int, stored: NDArray[Any], window: Window | None, name: str) -> Display:
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    modality = _modality(dataset, index, name)
    signed = _can_be_negative(stored.dtype, modality)
    voi = window or _voi(dataset, index, name, signed=signed) or _range(dataset, index, stored, modality)
    return Display(modality, voi, inverted)


def _modality(dataset: Any, index: int, name: str) -> Rescale | Lut | None:
    if sequence := dataset.get("ModalityLUTSequence"):
        return look_up_table(dataset, sequence[0], name)
    slope, intercept = (frame_value(dataset, index, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        return None
    found = Rescale(float(slope), float(intercept))
    if not (np.isfinite(found.slope) and np.isfinite(found.intercept)):
        raise ImageError(f"{name} has a rescale slope or intercept that is not finite. Export it again.")
    return None if found == Rescale(1.0, 0.0) else found


def _voi(dataset: Any, index: int, name: str, *, signed: bool) -> Window | Lut | None:
    """Return the file's look-up table, or else the first of its windows; pydicom prefers the table, too.

    `signed` says whether values in the units of the modality can be negative.
    """
    sequence = frame_value(dataset, index, "VOILUTSequence")
    if sequence and sequence[0].get("LUTData") is not None and sequence[0].get("LUTDescriptor") is not None:
        return look_up_table(dataset, sequence[0], name, signed=signed)
    center, width = (_first(frame_value(dataset, index, keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    function = str(frame_value(dataset, index, "VOILUTFunction") or LINEAR).upper()
    if function not in (LINEAR, LINEAR_EXACT, SIGMOID):
        raise ImageError(
            f"{name} has a VOI LUT function other than {LINEAR}, {LINEAR_EXACT} and {SIGMOID}. "
            "Choose a window as CENTER/WIDTH."
        )
    found = Window(float(center), float(width), function)
    if fault := found.fault():
        raise ImageError(f"{name} has a window that cannot be used: {fault}. Choose another as CENTER/WIDTH.")
    return found


def _can_be_negative(dtype: np.dtype[Any], modality: Rescale | Lut | None) -> bool:
    """Return whether stored values of a type can be negative in the units of the modality."""
    if isinstance(modality, Lut):
        return False
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max] if dtype.kind in "iu" else [-1, 1], np.float64)
    return bool((ends if modality is None else modality.apply(ends)).min() < 0)


def _first(value: Any) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return None if value in ("", None) else value
    return value[0] if len(value) else None


def _range(dataset: Any, index: int, stored: NDArray[Any], modality: Rescale | Lut | None) -> Range:
    """Return the range shown without a window: 8 bits as they are, more from the lowest value to the highest."""
    bits = int(dataset.get("BitsStored") or 0)
    if modality is None and 0 < bits <= 8 and stored.dtype.kind in "iu":
        low = -(1 << (bits - 1)) if stored.dtype.kind == "i" else 0
        return Range(low, low + (1 << bits) - 1)
    limits = _padding(dataset, index, stored)
    # without a range if all is padding
    return Range(*(value_range(stored, modality, limits) or (0.0, 0.0)))


def _padding(dataset: Any, index: int, stored: NDArray[Any]) -> tuple[float, float] | None:
    """Return the first and the last stored value that mean padding. Source: DICOM PS3.3 C.7.5.1.1.2."""
    kind = next(kind for kind in ("", "Float", "DoubleFloat") if f"{kind}PixelData" in dataset)
    padding, end = (frame_value(dataset, index, f"{kind}PixelPadding{what}") for what in ("Value", "RangeLimit"))
    if padding is None:
        return None
    ends = [padding, padding if end is None else end]
    if stored.dtype.kind in "iu":
        ends = [_stored_sign(int(value), stored) for value in ends]
    return float(min(ends)), float(max(ends))


def _stored_sign(value: int, stored: NDArray[Any]) -> int:
    """Return a padding value in the type of the pixels: some writers state it as unsigned for signed pixels."""
    if stored.dtype.kind == "i" and value > np.iinfo(stored.dtype).max:
        return value - (1 << (8 * stored.dtype.itemsize))
    if stored.dtype.kind == "u" and value < 0:
        return value + (1 << (8 * stored.dtype.itemsize))
    return value


def _colour(dataset: Any, index: int, photometric: str, notes: list[Note], name: str) -> NDArray[np.uint8]:
    stored = decode_frame(dataset, index, name)
    if photometric == "PALETTE COLOR":
        notes.append(note("palette_colours"))
        stored = through_palette(stored, dataset)
        highest = max((1 << int(dataset.RedPaletteColorLookupTableDescriptor[2])) - 1, int(stored.max(initial=0)))
    else:
        if photometric != "RGB":
            notes.append(note("converted_to_rgb", mode=photometric))
        highest = (1 << int(dataset.BitsStored)) - 1
    if highest == 255:
        return np.ascontiguousarray(stored, np.uint8)
    notes.append(note("scaled_colours", highest=highest))
    return render(stored, Display(None, Range(0, highest)))


def _grey_notes(display: Display, stored: NDArray[Any]) -> list[Note]:
    notes = []
    if isinstance(display.modality, Rescale):
        notes.append(note("rescaled", slope=display.modality.slope, intercept=display.modality.intercept))
    elif display.modality is not None:
        notes.append(note("modality_lut"))
    if not (isinstance(display.voi, Range) and stored.dtype.itemsize == 1 and display.modality is None):
        notes.append(_voi_note(display.voi))
    if display.inverted:
        notes.append(note("monochrome1"))
    return notes


def _voi_note(voi: Window | Lut | Range) -> Note:
    if isinstance(voi, Window):
        return voi.note()
    if isinstance(voi, Lut):
        return note("voi_lut")
    return note("no_window", low=voi.low, high=voi.high)
