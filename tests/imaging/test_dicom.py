"""DICOM headers decide: frames, windows, padding, palettes. Bad headers are one sentence without patient data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imaging.phantoms import dataset, saved, stored_values, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from bimedix_edge.errors import BimedixEdgeError, ImageError, UsageError
from bimedix_edge.imaging.notes import note
from bimedix_edge.imaging.picture import load_picture, load_pictures
from bimedix_edge.imaging.series import find_series
from bimedix_edge.imaging.window import PRESETS, parse_window

VALUES = stored_values(12, signed=False)


def _file(**attributes: Any) -> bytes:
    return written(dataset(VALUES, 12, **attributes))


def test_the_first_of_several_windows_is_used() -> None:
    one = load_picture(_file(WindowCenter=1000, WindowWidth=500))
    both = load_picture(_file(WindowCenter=[1000, 40], WindowWidth=[500, 400]))
    assert np.array_equal(one.pixels, both.pixels)
    assert one.tags["window"] == "window: center 1000, width 500"


def test_a_chosen_window_replaces_the_files_own() -> None:
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    asked = load_picture(_file(WindowCenter=40, WindowWidth=400, **rescale), window="lung")
    own = load_picture(_file(WindowCenter=-600, WindowWidth=1500, **rescale))
    assert np.array_equal(asked.pixels, own.pixels)
    assert asked.tags["window"] == "lung window: center -600, width 1500"
    assert "window_not_for_modality" not in [warning.code for warning in asked.warnings]


def test_a_preset_on_another_modality_is_warned_of() -> None:
    picture = load_picture(_file(Modality="MR"), window="brain")
    assert note("window_not_for_modality", preset="brain", modality="MR") in picture.warnings
    assert "the brain window is for CT, but this is MR" in " ".join(map(str, picture.warnings))


def test_presets_are_those_of_radiology() -> None:
    assert PRESETS["soft"] == (40, 400)
    assert (parse_window("BONE").center, parse_window("BONE").width) == (400, 1800)
    assert parse_window("-600/1500").center == -600


@pytest.mark.parametrize("text", ["", "lungs", "40", "40/", "/400", "40/0", "40/-5", "40/0.5", "nan/400", "40/inf"])
def test_invalid_windows_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a window"):
        parse_window(text)


@pytest.mark.parametrize("limit", [None, 60010])
def test_padding_is_left_out_of_the_range(limit: int | None) -> None:
    values = VALUES.copy()
    values[:5] = 60000
    if limit:
        values[0] = limit
    attributes = {"PixelPaddingValue": 60000} | ({"PixelPaddingRangeLimit": limit} if limit else {})
    picture = load_picture(written(dataset(values, 16, **attributes)))
    inside = values[5:]
    assert picture.notes == (note("no_window", low=int(inside.min()), high=int(inside.max())),)
    assert picture.pixels[5:].max() == 255


def _enhanced() -> bytes:
    """Three frames, each with its own window, and one shared rescale."""
    frames = np.stack([VALUES, VALUES // 2, VALUES // 4])
    made = dataset(VALUES, 12)
    made.NumberOfFrames, made.PixelData = 3, frames.tobytes()
    per_frame = []
    for center in (100, 200, 300):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 150
        group.FrameVOILUTSequence = Sequence([window])
        per_frame.append(group)
    made.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    rescale, shared = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -50
    shared.PixelValueTransformationSequence = Sequence([rescale])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    return saved(made)


def test_each_frame_has_its_own_window_and_the_shared_rescale(tmp_path: Path) -> None:
    path = tmp_path / "enhanced"
    path.write_bytes(_enhanced())
    pictures = load_pictures(path, frame="all")
    assert [str(picture.notes[0]) for picture in pictures] == ["frame 1 of 3", "frame 2 of 3", "frame 3 of 3"]
    for number, picture in enumerate(pictures):
        x = (VALUES // (1, 2, 4)[number]) * 2.0 - 50
        shares = np.clip((x - (100 * (number + 1) - 0.5)) / 149 + 0.5, 0, 1)
        assert np.array_equal(picture.pixels[..., 0], np.floor(shares * 255 + 0.5 + 1e-7))
    assert np.array_equal(load_picture(path).pixels, pictures[1].pixels)
    assert np.array_equal(load_picture(path, frame=3).pixels, pictures[2].pixels)


@pytest.mark.parametrize("frame", [0, 4, -1])
def test_a_frame_out_of_range_says_which_there_are(frame: int) -> None:
    with pytest.raises(UsageError, match="has frames 1 to 3"):
        load_picture(_enhanced(), frame=frame)


def _without(*names: str) -> bytes:
    made = dataset(VALUES, 12)
    for name in names:
        delattr(made, name)
    return saved(made)


def _with(**attributes: Any) -> bytes:
    made = dataset(VALUES, 12)
    for name, value in attributes.items():
        setattr(made, name, value)
    return saved(made)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_without("PixelData"), "it is a DICOM object of the kind CT Image Storage"),
        (_without("PhotometricInterpretation"), "does not state its photometric interpretation"),
        (_without("Rows"), "does not state Rows"),
        (_with(WindowCenter=40, WindowWidth=0), "its width is 0"),
        (_with(WindowCenter=40, WindowWidth=-3), "its width is -3"),
        (_with(PixelData=VALUES[:-7].tobytes()), "7 of 40 rows are missing"),
        (_with(PixelData=VALUES[:-7].tobytes()[:-2]), "8 of 40 rows are missing"),
        (_with(SamplesPerPixel=3, PlanarConfiguration=0), "has colour where its header states MONOCHROME2"),
        (_with(PhotometricInterpretation="RGB"), "has no colour where its header states RGB"),
        (_with(PhotometricInterpretation="GEHEIM GRETEL"), "no term of the standard"),
        (_with(BitsStored=20), "states 20 bits stored, and 1 to 16 are possible"),
    ],
)
def test_a_bad_header_is_one_sentence(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_picture(data)
    text = str(caught.value)
    assert text.startswith("The image ")
    assert "\n" not in text
    assert "retel" not in text.lower()


def test_only_allowed_tags_are_shown() -> None:
    made = dataset(VALUES, 12)
    made.BodyPartExamined, made.Laterality = "CHEST", "L"
    with pytest.warns(UserWarning, match="Invalid value"):
        made.ViewPosition = "Gretel Geheim"
    made.InstitutionName = made.SeriesDescription = made.StudyDescription = "Gretel"
    made.BurnedInAnnotation = "YES"
    picture = load_picture(saved(made))
    assert set(picture.tags) == {"modality", "body_part", "laterality", "window"}
    assert (picture.tags["modality"], picture.tags["body_part"], picture.tags["laterality"]) == ("CT", "CHEST", "left")
    assert note("burned_in_text") in picture.warnings
    assert "retel" not in repr((picture.words(), picture.notes, picture.warnings, picture.tags))


def test_series_are_found_in_their_order_and_named_without_names(tmp_path: Path) -> None:
    for series, instance in ((2, 2), (2, 1), (1, 1)):
        made = dataset(VALUES, 12)
        made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = f"1.2.{series}", series, instance
        made.SeriesDescription = "Gretel"
        (tmp_path / f"{series}{3 - instance}").write_bytes(saved(made))
    (tmp_path / "notes.txt").write_text("no picture")
    found = find_series(tmp_path)
    assert [series.words() for series in found] == ["CT: 1 picture of 52 x 40", "CT: 2 pictures of 52 x 40"]
    assert [path.name for path in found[1].files] == ["22", "21"]


def test_a_folder_without_dicom_is_named(tmp_path: Path) -> None:
    with pytest.raises(BimedixEdgeError, match="is a directory without a DICOM picture"):
        find_series(tmp_path)
