"""Every source becomes uint8 RGB, 16-bit images are scaled, and a file that cannot be read is one sentence."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.notes import note
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.imaging.sniff import sniff


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(width: int = 40, height: int = 30, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_png_keeps_every_pixel_and_is_known_by_its_bytes(tmp_path: Path) -> None:
    data = _encode(Image.fromarray(_noise()), "PNG")
    path = tmp_path / "صورة.txt"
    path.write_bytes(data)
    picture = load_picture(path)
    assert np.array_equal(picture.pixels, _noise())
    assert picture.format == "PNG"
    assert (picture.width_px, picture.height_px) == (40, 30)
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    assert picture.notes == ()


def test_a_jpeg_equals_pillows_pixels() -> None:
    data = _encode(Image.fromarray(_noise()), "JPEG", quality=90)
    picture = load_picture(data)
    assert np.array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_the_exif_orientation_is_obeyed_and_stated() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = load_picture(_encode(Image.fromarray(_noise(40, 30)), "JPEG", exif=exif))
    assert (picture.width_px, picture.height_px) == (30, 40)
    assert picture.notes == (note("turned_upright"),)


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (0, 65535), (1000, 1255), (200, 210)])
def test_a_16_bit_ramp_is_scaled_not_clipped(low: int, high: int) -> None:
    ramp = np.linspace(low, high, 512).round().astype(np.uint16)[None].repeat(4, axis=0)
    picture = load_picture(_encode(Image.fromarray(ramp), "PNG"))
    grey = picture.pixels[0, :, 0].astype(np.float64)
    exact = (ramp[0].astype(np.float64) - low) * 255 / (high - low)
    assert np.abs(grey - exact).max() <= 0.5 + 1e-9
    assert len(np.unique(grey)) == min(256, len(np.unique(ramp)))
    assert picture.notes == (note("scaled_16_bit", low=low, high=high),)
    assert str(picture.notes[0]) == f"16-bit values {low} to {high} scaled to 0 to 255"


def test_a_flat_16_bit_image_is_black_without_a_division_by_zero() -> None:
    flat = np.full((5, 5), 777, np.uint16)
    assert load_picture(_encode(Image.fromarray(flat), "PNG")).pixels.max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(_noise(channels=1).astype(np.uint16) * 256) if mode == "I;16" else None
    image = image or Image.fromarray(_noise()).convert(mode)
    picture = load_picture(_encode(image, "PNG"))
    assert picture.pixels.shape == (30, 40, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous


def test_cmyk_jpeg_becomes_rgb_and_says_so() -> None:
    picture = load_picture(_encode(Image.fromarray(_noise()).convert("CMYK"), "JPEG"))
    assert picture.notes == (note("converted_to_rgb", mode="CMYK"),)


def test_transparent_parts_are_black_and_stated() -> None:
    rgba = np.full((4, 4, 4), 255, np.uint8)
    rgba[0, 0, 3] = 0
    picture = load_picture(_encode(Image.fromarray(rgba), "PNG"))
    assert picture.pixels[0, 0].tolist() == [0, 0, 0]
    assert picture.pixels[1, 1].tolist() == [255, 255, 255]
    assert picture.notes[0] == note("transparent_on_black")


def test_arrays_and_pillow_images_are_taken() -> None:
    assert np.array_equal(load_picture(_noise()).pixels, _noise())
    assert np.array_equal(load_picture(Image.fromarray(_noise())).pixels, _noise())
    assert load_picture(_noise(channels=1)).pixels.shape == (30, 40, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_rather_than_guessed(array: NDArray[np.generic]) -> None:
    with pytest.raises(ImageError, match="array"):
        load_picture(array)  # type: ignore[arg-type]


def test_a_huge_image_is_refused_from_its_header() -> None:
    with pytest.raises(ImageError, match="has 9000 x 9000 = 81 megapixels, more than the limit of 50 megapixels"):
        load_picture(_png_header(9000, 9000))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png cannot be read \(No such file"):
        load_picture(tmp_path / "nowhere.png")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a directory"):
        load_picture(tmp_path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"empty\.png is empty \(0 bytes\)"):
        load_picture(tmp_path / "empty.png")


def test_a_nul_in_the_name_is_no_crash() -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        load_picture("a\0b")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    data = _encode(Image.fromarray(_noise(200, 200)), kind)
    with pytest.raises(ImageError, match="damaged or truncated"):
        load_picture(data[: int(len(data) * kept)])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic" + b"\0" * 20, "HEIF, AVIF or video"),
        (b"\x1f\x8b\x08" + b"\0" * 20, "gzip"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_other_formats_are_named(data: bytes, name: str) -> None:
    assert sniff(data) == name
    with pytest.raises(ImageError, match=f"The image is {name}"):
        load_picture(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"GIF89a" + b"\0" * 20, "GIF"),
        (b"II*\0" + b"\0" * 20, "TIFF"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"BM" + b"\0" * 20, "BMP"),
    ],
)
def test_a_signature_without_a_picture_is_one_sentence(data: bytes, name: str) -> None:
    assert sniff(data) == name
    with pytest.raises(ImageError, match=r"^The image "):
        load_picture(data)


def test_text_is_no_image() -> None:
    with pytest.raises(ImageError, match="no image format that is known"):
        load_picture("سلام".encode())


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_mutants_raise_only_our_error(kind: str) -> None:
    rng = np.random.default_rng(5)
    original = _encode(Image.fromarray(_noise(64, 64)), kind)
    refused = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(4, len(data))] = rng.integers(0, 256)
        try:
            assert load_picture(bytes(data)).pixels.shape[2] == 3
        except ImageError:
            refused += 1
    assert refused > 0
