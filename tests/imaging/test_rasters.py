"""TIFF, WebP, BMP, GIF and 16 bits: the bits that Pillow would drop are kept, and every step has a note."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.imaging.checks import has_moire
from bimedix_edge.imaging.notes import note
from bimedix_edge.imaging.picture import load_picture


def _png16(values: NDArray[np.uint16], colour_type: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _tiff16(values: NDArray[np.uint16], order: str, *, photometric: int, deflated: bool = False) -> bytes:
    height, width, n_channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflated else data
    n_tags = 10
    bits_at = 8 + 2 + 12 * n_tags + 4
    bits = struct.pack(f"{order}{n_channels}H", *[16] * n_channels)
    inline = struct.pack(f"{order}HH", 16, 0)
    words = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, n_channels, bits_at),
        (259, 3, 1, 8 if deflated else 1),
        (262, 3, 1, photometric),
        (273, 4, 1, bits_at + len(bits)),
        (277, 3, 1, n_channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    table = b""
    for tag, kind, count, value in words:
        short = struct.pack(f"{order}HH", value if kind == 3 and tag != 258 else 0, 0)
        packed = struct.pack(f"{order}I", value) if kind == 4 or (tag == 258 and n_channels > 1) else short
        table += struct.pack(f"{order}HHI", tag, kind, count) + (inline if tag == 258 and n_channels == 1 else packed)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, n_tags)
    return start + table + struct.pack(f"{order}I", 0) + bits + data


def _scaled(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.floor((values - low) / (high - low) * 255 + 0.5 + 1e-7).astype(np.uint8)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
COLOUR = np.random.default_rng(3).integers(0, 4096, (64, 70, 3), dtype=np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        _png16(RAMP, 0),
        *(_tiff16(RAMP[..., None], order, photometric=1, deflated=it) for order in "<>" for it in (False, True)),
    ],
    ids=["PNG", "TIFF little", "TIFF little deflated", "TIFF big", "TIFF big deflated"],
)
def test_a_12_bit_ramp_keeps_every_level_that_8_bits_allow(data: bytes) -> None:
    picture = load_picture(data)
    assert np.array_equal(picture.pixels[..., 0], _scaled(RAMP))
    assert len(np.unique(picture.pixels)) == 256
    counts = np.bincount(picture.pixels[..., 0].reshape(-1))
    assert counts[1:-1].min() >= 16  # nothing is clipped: no level takes more than its share
    assert counts.max() <= 17
    assert picture.notes == (note("scaled_16_bit", low=0, high=4095),)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_low_bytes_of_colour_tiffs_are_kept(order: str, deflated: bool) -> None:
    picture = load_picture(_tiff16(COLOUR, order, photometric=2, deflated=deflated))
    assert np.array_equal(picture.pixels, _scaled(COLOUR))


def test_low_bytes_of_colour_pngs_are_kept() -> None:
    picture = load_picture(_png16(COLOUR, 2))
    assert np.array_equal(picture.pixels, _scaled(COLOUR))
    assert picture.notes == (note("scaled_16_bit_colour", low=0, high=int(COLOUR.max())),)


@pytest.mark.parametrize(("n_colours", "colour_type"), [(1, 4), (3, 6)])
def test_16_bit_transparency_is_black_and_stated(n_colours: int, colour_type: int) -> None:
    values = np.full((64, 64, n_colours + 1), 1000, np.uint16)
    values[..., -1] = 65535
    values[:32, :, -1] = 0
    picture = load_picture(_png16(values, colour_type))
    assert picture.pixels[:32].max() == 0
    assert picture.pixels[32:].min() == 255
    assert note("transparent_on_black") in picture.notes


def test_a_16_bit_tiff_whose_lowest_value_is_white_is_inverted() -> None:
    picture = load_picture(_tiff16(RAMP[..., None], "<", photometric=0))
    assert np.array_equal(picture.pixels[..., 0], 255 - _scaled(RAMP))
    assert picture.notes == (note("scaled_16_bit", low=0, high=4095), note("white_is_zero"))


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "WEBP", "GIF"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    grey = np.random.default_rng(4).integers(0, 256, (70, 80), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).convert("RGB" if kind != "GIF" else "L").save(
        buffer, kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    assert np.array_equal(load_picture(buffer.getvalue()).pixels, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_pictures_is_shown_with_a_note(kind: str) -> None:
    frames = [Image.fromarray(np.full((70, 80, 3), value, np.uint8)) for value in (200, 20)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    picture = load_picture(buffer.getvalue())
    assert picture.pixels.min() >= 190
    assert note("first_of_several") in picture.notes


def test_blank_tiny_and_photographed_pictures_are_warned_of() -> None:
    assert load_picture(np.full((100, 100), 7, np.uint8)).warnings == (note("almost_blank"),)
    assert load_picture(np.random.default_rng(0).integers(0, 256, (20, 90), dtype=np.uint8)).warnings == (
        note("tiny", width=90, height=20),
    )
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    buffer = io.BytesIO()
    Image.effect_noise((90, 90), 60).save(buffer, "JPEG", exif=exif)
    assert load_picture(buffer.getvalue()).warnings[0] == note("camera")
    assert "Maker" not in str(load_picture(buffer.getvalue()).warnings)


def test_a_slanted_grid_over_a_picture_is_taken_for_a_screen() -> None:
    y, x = np.mgrid[:600, :600]
    smooth = 120 + 80 * np.sin(x / 90) * np.cos(y / 70)
    noise = np.random.default_rng(1).normal(0, 4, smooth.shape)
    clean = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    assert not has_moire(clean)
    angle = np.radians(7)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    grid = (np.sin(2 * np.pi * u / 3.4) > 0) * (np.sin(2 * np.pi * v / 3.4) > 0)
    assert has_moire(np.clip(smooth * (0.85 + 0.15 * grid) + noise, 0, 255).astype(np.uint8))
