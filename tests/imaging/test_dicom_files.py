"""pydicom's own test files: our pixels equal those of its pipeline, or the file is refused for a named reason."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.imaging.sniff import sniff

data_store = pytest.importorskip("data_store", reason="needs pydicom-data")
FOLDERS = [Path(pydicom.__file__).parent / "data" / "test_files", Path(data_store.__file__).parent / "data"]
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file())
# the reasons for refusing a file that pydicom reads; every other file must be equal
REASONS = {
    r"has no pixels: it is": "no pixels, or an object that is no picture",
    r"does not state Rows": "no picture",
    r"has no image format that is known": "no DICOM file",
    r"is gzip": "gzip",
    r"rows are missing": "truncated",
    r"decoder for JPEG Extended .*12 bit": "needs a codec under the GPL",
    r"is damaged or truncated": "damaged; no decoder of pydicom's reads it either",
    r"damaged \(": "a header that pydicom refuses too",
    r"contradicts its header": "a codestream that contradicts the header, which no decoder of pydicom's reads either",
}


def _frame(dataset: Any) -> NDArray[Any]:
    """pydicom's pixels of the middle frame."""
    from pydicom.pixels.utils import pixel_array

    n_frames = int(dataset.get("NumberOfFrames") or 1)
    if not getattr(dataset, "file_meta", None):  # uncompressed, as it was read
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return pixel_array(dataset, index=(n_frames - 1) // 2)


def _expected(dataset: Any) -> NDArray[np.uint8]:
    """pydicom's pipeline, then its range of output to 0..255."""
    stored = _frame(dataset)
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        if dataset.original_encoding[1] is False and dataset["RedPaletteColorLookupTableDescriptor"].value[2] == 16:
            for colour in ("Red", "Green", "Blue"):  # pydicom reads them in the order of this machine
                element = dataset.get(f"{colour}PaletteColorLookupTableData")
                if element is not None:
                    swapped = np.frombuffer(element, "<u2").byteswap().tobytes()
                    setattr(dataset, f"{colour}PaletteColorLookupTableData", swapped)
        return _levels(apply_color_lut(stored, dataset)[..., :3], 0, 65535)
    if not photometric.startswith("MONOCHROME"):
        highest = 2**dataset.BitsStored - 1
        return stored.astype(np.uint8) if highest == 255 else _levels(stored, 0, highest)
    values = apply_modality_lut(stored, dataset)
    shown = apply_voi_lut(values, dataset)
    has_window = dataset.get("WindowCenter") is not None or bool(dataset.get("VOILUTSequence"))
    levels = _levels(shown, *_ends(dataset, values, has_window=has_window))
    return 255 - levels if photometric == "MONOCHROME1" else levels


def _ends(dataset: Any, values: NDArray[Any], *, has_window: bool) -> tuple[float, float]:
    """The range of pydicom's output, by its documentation of apply_windowing and apply_voi."""
    if dataset.get("VOILUTSequence"):
        return 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if has_window:
        slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
        return low * slope + intercept, high * slope + intercept
    if bits <= 8:
        return low, high
    padding = dataset.get("PixelPaddingValue")
    inside = values if padding is None else values[_frame(dataset) != padding]
    return float(inside.min()), float(inside.max())


def _levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.clip(np.floor(shares * 255 + 0.5 + 1e-7), 0, 255).astype(np.uint8)


def _flattened(dataset: Any) -> Any:
    """An enhanced file reduced to its middle frame, as pydicom's functions need it."""
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups += [per_frame[(int(dataset.get("NumberOfFrames") or 1) - 1) // 2]] if len(per_frame) else []
    for group in groups:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for element in (group.get(macro) or [{}])[0]:
                dataset[element.tag] = element
    return dataset


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pixels_equal_pydicoms_pipeline_or_a_reason_is_named(path: Path) -> None:
    data = path.read_bytes()
    try:
        picture = load_picture(data)
    except BimedixEdgeError as error:
        assert str(error).startswith("The image ")
        assert [reason for pattern, reason in REASONS.items() if re.search(pattern, str(error))], error
        if "damaged" in str(error) or "contradicts its header" in str(error):
            with pytest.raises(Exception):  # noqa: B017  of any of its kinds
                _expected(pydicom.dcmread(io.BytesIO(data), force=True))
        return
    assert picture.format == sniff(data)
    if picture.format != "DICOM":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = _expected(_flattened(pydicom.dcmread(io.BytesIO(data), force=True)))
    assert np.array_equal(picture.pixels, expected if expected.ndim == 3 else expected[..., None].repeat(3, axis=2))
