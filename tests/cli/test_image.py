"""`bimedix-edge image`, and the notes of `ask` and `chat` about pictures, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from imaging.phantoms import dataset, saved, stored_values
from PIL import Image

from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.imaging.preprocess import Preprocessing, square

COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main"]


def run(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, input=stdin, check=False, encoding="utf-8"
    )


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    made = dataset(stored_values(12, signed=False, shape=(100, 140)), 12, RescaleSlope=1, RescaleIntercept=-1024)
    path = tmp_path / "أشعة.dcm"
    path.write_bytes(saved(made))
    return path


def test_the_picture_saved_is_what_the_model_sees(ct: Path, tmp_path: Path) -> None:
    result = run("image", ct, "-o", tmp_path / "seen.png", "--window", "lung")
    assert result.returncode == 0, result.stderr
    assert "lung window: center -600, width 1500" in result.stdout
    assert "padded to 140 x 140 and scaled to 336 x 336" in result.stdout
    seen = np.asarray(Image.open(tmp_path / "seen.png"))
    assert np.array_equal(seen, square(load_picture(ct, window="lung").pixels, Preprocessing()))


def test_json_has_everything(ct: Path) -> None:
    (entry,) = json.loads(run("image", ct, "--json", "--crop").stdout)["images"]
    assert entry["format"] == "DICOM"
    assert entry["tags"]["modality"] == "CT"
    assert entry["seen"]["aspect"] == "crop"
    assert "Geheim" not in json.dumps(entry)


def test_ask_reports_the_notes_of_its_pictures(bundles: dict[str, Path], ct: Path) -> None:
    result = run("ask", "-m", bundles["F16"], "--json", "--window", "bone", "-i", ct, "هل توجد عقيدة رئوية؟")
    (entry,) = json.loads(result.stdout)["images"]
    window = {"preset": "bone", "center": 400, "width": 1800}
    text = "bone window: center 400, width 1800"
    assert {"code": "preset_window", "fields": window, "text": text} in entry["notes"]
    shown = run("ask", "-m", bundles["F16"], "-i", ct, "Is there a nodule?")
    assert "no window: " in shown.stderr
    arabic = run("ask", "-m", bundles["F16"], "--window", "bone", "-i", ct, "هل توجد عقيدة رئوية؟")
    assert "الصورة: DICOM، CT، 140 x 100؛ " in arabic.stderr
    assert "نافذة العظام: المركز 400، العرض 1800" in arabic.stderr
    assert "bone window" not in arabic.stderr


def test_chat_shows_notes_before_the_first_answer(bundles: dict[str, Path], ct: Path) -> None:
    result = run("chat", "-m", bundles["F16"], "-i", ct, stdin=f"Is there a nodule?\n/image {ct} lung\n")
    lines = result.stdout.splitlines()
    position = next(number for number, line in enumerate(lines) if line.startswith("DICOM, CT, 140 x 100"))
    assert position < len(lines) - 1
    assert any("lung window" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--window", "40/0"], 2, "LINEAR needs 1 or more"),
        (["--window", "lungs"], 2, "CENTER/WIDTH"),
        (["--frame", "2"], 2, "has one frame"),
        (["--frame", "first"], 2, "Write a number from 1, middle or all"),
        (["--series", "1"], 2, "is a file, and --series needs a folder"),
        (["-o", "seen.jpg"], 2, "End the name in .png"),
    ],
)
def test_wrong_options_are_one_sentence(ct: Path, arguments: list[str], code: int, message: str) -> None:
    result = run("image", ct, *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_with_two_series_lists_them_without_a_terminal(tmp_path: Path) -> None:
    for number in (1, 2):
        made = dataset(stored_values(8, signed=False), 8, SeriesNumber=number, SeriesInstanceUID=f"1.2.{number}")
        (tmp_path / str(number)).write_bytes(saved(made))
    result = run("image", tmp_path)
    assert result.returncode == 2
    assert (
        "holds 2 series: 1) CT: 1 picture of 52 x 40; 2) CT: 1 picture of 52 x 40. Choose one with --series N"
        in result.stderr
    )
    assert run("image", tmp_path, "--series", "2").returncode == 0
    assert run("image", tmp_path, "--series", "3").returncode == 2
