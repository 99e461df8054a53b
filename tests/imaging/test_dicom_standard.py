"""Details of the standard that viewers get wrong, each against a value-by-value reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from imaging.phantoms import HTJ2K_PHANTOMS, dataset, htj2k_file, htj2k_values, saved, stored_values
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.notes import note
from bimedix_edge.imaging.picture import load_picture

VALUES = stored_values(12, signed=False)
SIGNED = stored_values(12, signed=True)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def _grey(data: bytes, **options: Any) -> NDArray[np.uint8]:
    return load_picture(data, **options).pixels[..., 0]


def _levels(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5 + 1e-7).astype(np.uint8)


def _lut(first: int, entries: list[int], bits: int, *, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, vr, [len(entries) & 0xFFFF, first, bits])
    item.add_new(0x00283006, "US", entries)
    return item


@pytest.mark.parametrize(("first", "vr"), [(64512, "US"), (-1024, "SS")])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_voi_table_may_start_below_zero(first: int, vr: str, photometric: str) -> None:
    """PS3.3 C.11.2.1.1: it maps the rescaled values, which are negative although the stored ones are not."""
    entries = [round(4095 * (index / 4095) ** 2) for index in range(4096)]
    made = dataset(
        VALUES, 12, photometric=photometric, VOILUTSequence=Sequence([_lut(first, entries, 12, vr=vr)]), **CT
    )
    expected = _levels(np.array(entries, np.float64)[VALUES] / 4095)
    assert np.array_equal(_grey(saved(made)), 255 - expected if photometric == "MONOCHROME1" else expected)


def test_a_voi_table_of_high_unsigned_values_stays_unsigned() -> None:
    values = stored_values(16, signed=False)
    entries = list(range(1000))
    made = dataset(values, 16, VOILUTSequence=Sequence([_lut(40000, entries, 10)]))
    expected = _levels(np.clip(values.astype(np.int64) - 40000, 0, 999) / 1023)
    assert np.array_equal(_grey(saved(made)), expected)


def test_a_table_of_bytes_holds_two_entries_a_word() -> None:
    values = stored_values(8, signed=False)
    item = Dataset()
    item.add_new(0x00283002, "US", [256, 0, 8])
    item.add_new(0x00283006, "OW", bytes(range(255, -1, -1)))
    made = dataset(values, 8, VOILUTSequence=Sequence([item]))
    assert np.array_equal(_grey(saved(made)), 255 - values)


def test_a_modality_table_comes_before_the_window() -> None:
    entries = [(index * 7) % 5000 for index in range(4096)]
    table = _lut(0, entries, 16)
    table.ModalityLUTType = "US"
    made = dataset(VALUES, 12, ModalityLUTSequence=Sequence([table]), WindowCenter=2500, WindowWidth=3000)
    values = np.array(entries, np.float64)[VALUES]
    assert np.array_equal(_grey(saved(made)), _levels((values - 2499.5) / 2999 + 0.5))


def test_a_linear_window_of_width_one_is_a_threshold() -> None:
    """PS3.3 C.11.2.1.2.1: black up to center - 0.5, white above."""
    made = dataset(VALUES, 12, WindowCenter=2000, WindowWidth=1)
    assert np.array_equal(_grey(saved(made)), np.where(VALUES > 1999.5, 255, 0))


def test_a_sigmoid_has_no_ends() -> None:
    made = dataset(SIGNED, 12, WindowCenter=-100, WindowWidth=300, VOILUTFunction="SIGMOID")
    assert np.array_equal(_grey(saved(made)), _levels(1 / (1 + np.exp(-4 * (SIGNED + 100.0) / 300))))


def test_bits_above_those_stored_are_no_part_of_a_value() -> None:
    """PS3.5 8.1.1: they may hold anything, such as overlays, and need not repeat the sign."""
    plain = _grey(saved(dataset(SIGNED, 12)))
    for dirt in (0, 0xF000, 0xA000):
        made = dataset(SIGNED, 12)
        made.PixelData = ((SIGNED.view(np.uint16) & 0xFFF) | dirt).tobytes()
        assert np.array_equal(_grey(saved(made)), plain)


@pytest.mark.parametrize("values", [VALUES, SIGNED], ids=["unsigned", "signed"])
def test_values_may_lie_in_the_high_bits(values: NDArray[Any]) -> None:
    made = dataset(values, 12, HighBit=15)
    made.PixelData = (values.view(np.uint16) << 4 | 5).astype(np.uint16).tobytes()
    assert np.array_equal(_grey(saved(made)), _grey(saved(dataset(values, 12))))


@pytest.mark.parametrize("limit", [None, -1990])
def test_padding_stated_without_a_sign_is_left_out(limit: int | None) -> None:
    values = SIGNED.copy()
    values[SIGNED < -1500] = -1500
    values[:4] = -2000
    values[4] = -2000 if limit is None else -1995
    made = dataset(values, 12)
    made.add_new(0x00280120, "US", 65536 - 2000)
    if limit is not None:
        made.add_new(0x00280121, "SS", limit)
    low, high = int(values[5:].min()), int(values[5:].max())
    assert load_picture(saved(made)).notes == (note("no_window", low=low, high=high),)


def test_padding_of_floats_is_left_out() -> None:
    values = VALUES.astype(np.float32) / 7
    values[:3] = -1e30
    made = dataset(VALUES, 12)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, keyword)
    made.BitsAllocated, made.FloatPixelData, made.FloatPixelPaddingValue = 32, values.tobytes(), float(values[0, 0])
    low, high = values[3:].min(), values[3:].max()
    picture = load_picture(saved(made))
    assert np.array_equal(picture.pixels[..., 0], _levels((values.astype(np.float64) - low) / (float(high) - low)))


def test_each_frame_is_rescaled_by_itself_and_the_window_is_shared() -> None:
    frames = np.stack([VALUES, VALUES])
    made = dataset(VALUES, 12, NumberOfFrames=2, PixelData=frames.tobytes())
    groups = []
    for slope in (1, 3):
        item, group = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept = slope, -100 * slope
        group.PixelValueTransformationSequence = Sequence([item])
        groups.append(group)
    window, shared = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 3000, 5000, "LINEAR_EXACT"
    shared.FrameVOILUTSequence = Sequence([window])
    made.PerFrameFunctionalGroupsSequence, made.SharedFunctionalGroupsSequence = Sequence(groups), Sequence([shared])
    for number, slope in ((1, 1), (2, 3)):
        x = VALUES.astype(np.float64) * slope - 100 * slope
        assert np.array_equal(_grey(saved(made), frame=number), _levels((x - 3000) / 5000 + 0.5))


def _colour() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def test_colours_plane_by_plane_are_those_pixel_by_pixel() -> None:
    made = dataset(_colour(), 8, photometric="RGB", PlanarConfiguration=1)
    made.PixelData = _colour().transpose(2, 0, 1).tobytes()
    assert np.array_equal(load_picture(saved(made)).pixels, _colour())


def _rgb(ybr: NDArray[np.uint8]) -> NDArray[np.float64]:
    """PS3.3 C.7.6.3.1.2, solved for RGB."""
    y, b, r = (ybr[..., channel].astype(np.float64) for channel in range(3))
    b, r = b - 128, r - 128
    green = y - (0.114 * 1.772 / 0.587) * b - (0.299 * 1.402 / 0.587) * r
    return np.clip(np.stack([y + 1.402 * r, green, y + 1.772 * b], axis=2), 0, 255)


def test_ybr_422_shares_its_colours_between_two_pixels() -> None:
    ybr = _colour()
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]
    made = dataset(ybr, 8, photometric="YBR_FULL_422")
    pairs = [ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]]
    made.PixelData = np.stack(pairs, axis=2).tobytes()
    found = load_picture(saved(made))
    assert np.abs(found.pixels - _rgb(ybr)).max() <= 1  # the standard gives its coefficients to four digits
    assert found.notes == (note("converted_to_rgb", mode="YBR_FULL_422"),)


def _segments(entries: NDArray[np.int64]) -> bytes:
    """PS3.3 C.7.9.2: a discrete segment, a linear one, and an indirect copy of the first."""
    head = entries[:4]
    words = [0, len(head), *head, 1, len(entries) - 8, entries[-5], 2, 1, 0, 0]
    return np.array(words, "<u2").tobytes()


def test_segmented_palettes_are_expanded() -> None:
    ramp = np.concatenate([[5, 1, 9, 3], np.rint(np.linspace(3, 60000, 249)[1:]), [5, 1, 9, 3]]).astype(np.int64)
    values = stored_values(8, signed=False)
    made = dataset(values, 8, photometric="PALETTE COLOR")
    for number, colour in enumerate(("Red", "Green", "Blue")):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        made.add_new(0x00281221 + number, "OW", _segments(ramp))
    found = load_picture(saved(made)).pixels[..., 0]
    expected = _levels(ramp[values] / 65535.0)
    assert np.abs(found.astype(int) - expected).max() <= 1  # a linear segment may be rounded or cut


def test_what_decides_the_sign_must_be_stated() -> None:
    made = dataset(VALUES, 12)
    del made.PixelRepresentation
    with pytest.raises(ImageError, match="does not state PixelRepresentation"):
        load_picture(saved(made))


@pytest.mark.parametrize("name", HTJ2K_PHANTOMS)
def test_htj2k_gives_the_pixels_that_were_encoded(name: str) -> None:
    """Encoded with OpenJPH (see make_htj2k.py), decoded with OpenJPEG."""
    values, bits = htj2k_values(name), HTJ2K_PHANTOMS[name][0]
    plain = load_picture(saved(dataset(values, bits, photometric="RGB" if values.ndim == 3 else "MONOCHROME2")))
    found = load_picture(htj2k_file(name))
    difference = np.abs(found.pixels.astype(int) - plain.pixels).max()
    assert difference <= (1 if "lossy" in name else 0)
