"""Series of a folder or a DICOMDIR: large, damaged and missing files are read or counted; pipes are left alone."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imaging.phantoms import dataset, saved, stored_values, written
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence

from bimedix_edge.cli.pictures import Selection, load_all
from bimedix_edge.errors import ImageError, UsageError
from bimedix_edge.imaging.notes import note
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.imaging.series import find_series, holds_series

VALUES = stored_values(12, signed=False)


def _write(path: Path, **attributes: Any) -> Path:
    path.write_bytes(saved(dataset(VALUES, 12, SeriesInstanceUID="1.2.3", **attributes)))
    return path


def test_damaged_files_are_counted_and_warned_of_with_the_picture(tmp_path: Path) -> None:
    whole = _write(tmp_path / "1", InstanceNumber=1)
    (tmp_path / "2").write_bytes(whole.read_bytes()[:140] + b"\xff" * 300)
    (tmp_path / "notes.txt").write_text("no picture")
    (series,) = find_series(tmp_path)
    assert (series.files, series.n_unreadable) == ((whole,), 1)
    (picture,) = load_all([tmp_path], Selection())
    assert note("unreadable_files", n=1) in picture.warnings
    assert str(picture.warnings[0]) == "a DICOM file beside it cannot be read and may belong to it"
    whole.unlink()
    with pytest.raises(ImageError, match=r"without a DICOM picture that can be read \(1 cannot\)"):
        find_series(tmp_path)


def test_headers_longer_than_what_is_read_at_first_are_read_whole(tmp_path: Path) -> None:
    comments = "x" * (3 << 20)
    made = dataset(VALUES, 12, SeriesInstanceUID="1.2.3", InstanceNumber=1)
    made.add_new(0x00090010, "LO", "MAKER")
    made.add_new(0x00091001, "UT", comments)  # it precedes the size of the picture
    (tmp_path / "1").write_bytes(saved(made))
    values = np.random.default_rng(0).integers(0, 4096, (1000, 1024), dtype=np.uint16)
    made = dataset(values, 12, SeriesInstanceUID="1.2.3", InstanceNumber=2)
    (tmp_path / "2").write_bytes(written(made, "deflated"))
    assert (tmp_path / "2").stat().st_size > 1 << 20
    (series,) = find_series(tmp_path)
    assert [path.name for path in series.files] == ["1", "2"]
    assert series.n_unreadable == 0


def _dicomdir(folder: Path, names: list[str], padding: str = "") -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.3.9", uid.ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    records = []
    for name in names:
        record = Dataset()
        record.ReferencedFileID = name.split("/")
        record.TextValue = padding
        records.append(record)
    made.DirectoryRecordSequence = Sequence(records)
    (folder / "DICOMDIR").write_bytes(saved(made))
    return folder / "DICOMDIR"


def test_a_dicomdir_may_be_large_in_small_letters_and_incomplete(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = [f"IMAGES/IM{number}" for number in range(40)]
    for number, name in enumerate(names[:-1]):
        _write(tmp_path / name.lower(), InstanceNumber=number)
    path = _dicomdir(tmp_path, names, padding="x" * 60_000)
    assert path.stat().st_size > 2 << 20
    assert holds_series(path)
    (series,) = find_series(path)
    assert [file.name for file in series.files] == [f"im{number}" for number in range(39)]
    assert series.n_unreadable == 1  # listed, but missing


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_a_dicomdir_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    _write(tmp_path / "SECRET")
    (tmp_path / "disc").mkdir()
    with pytest.raises(ImageError, match="lists files without a DICOM picture"):
        find_series(_dicomdir(tmp_path / "disc", ["../SECRET"]))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names are Unix's")
def test_pipes_are_read_once_and_no_folder_waits_for_them(tmp_path: Path) -> None:
    data = _write(tmp_path / "1").read_bytes()
    pipe = tmp_path / "2"
    os.mkfifo(pipe)
    (series,) = find_series(tmp_path)
    assert len(series.files) == 1
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    (picture,) = load_all([pipe], Selection())
    writer.join()
    assert np.array_equal(picture.pixels, load_picture(data).pixels)


@pytest.mark.parametrize("number", [0, -1, 2])
def test_a_series_that_is_not_there_is_refused(tmp_path: Path, number: int) -> None:
    _write(tmp_path / "1")
    with pytest.raises(UsageError, match="has series 1 to 1"):
        load_all([tmp_path], Selection(series=number))
