"""One door for pictures: a path, bytes, an array or a Pillow image becomes a `Picture`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimedix_edge.errors import ImageError, UsageError
from bimedix_edge.imaging.checks import picture_warnings
from bimedix_edge.imaging.decoded import MAX_PIXELS, Decoded
from bimedix_edge.imaging.dicom_bounds import check_bounds
from bimedix_edge.imaging.isolation import decode_isolated
from bimedix_edge.imaging.raster import decode_raster
from bimedix_edge.imaging.raster_bounds import check_raster_bounds
from bimedix_edge.imaging.sniff import READABLE, sniff
from bimedix_edge.imaging.window import Window, parse_window

__all__ = ["MAX_FILE_BYTES", "MAX_FRAMES", "ImageSource", "Picture", "load_picture", "load_pictures"]

ImageSource = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image

MAX_FILE_BYTES = 512 << 20
# seven images fill BiMediX2's context
MAX_FRAMES = 16
# zlib and libjpeg-turbo do not crash on what damaged files hold, and their formats state what they will need
_IN_PROCESS = ("PNG", "JPEG", "BMP")


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8 (h, w, 3), RGB, C-contiguous.
        sha256: of the file's bytes, or of the pixels where there was no file.
        format: what the bytes were, such as `PNG`.
        notes: what was done to get the pixels, in words; empty when nothing was.
        warnings: what should be known before an answer about them is believed.
        tags: what a DICOM file says of itself: `modality`, `body_part`, `view`, `laterality` and `window`, as far as
            stated, and nothing else.
        n_frames: how many pictures the file holds.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    format: str
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
    tags: dict[str, str] = field(default_factory=dict)
    n_frames: int = 1

    @property
    def width_px(self) -> int:
        """Return the width."""
        return int(self.pixels.shape[1])

    @property
    def height_px(self) -> int:
        """Return the height."""
        return int(self.pixels.shape[0])

    def words(self) -> str:
        """Return what it is and what was done to it, in one line."""
        told = [value for name, value in self.tags.items() if name != "window"]
        size = f"{self.width_px} x {self.height_px}"
        return "; ".join([", ".join([self.format, *told, size]), *self.notes])


def load_picture(source: ImageSource, *, frame: int | str = "middle", window: str | None = None) -> Picture:
    """Read an image from a path, from a file's bytes, from uint8 (h, w, 3) or (h, w) pixels, or from Pillow.

    Args:
        source: the picture.
        frame: which of a DICOM file with several, from 1, or `middle`.
        window: of a grey DICOM picture, as CENTER/WIDTH or the name of a preset; by default the file's own.

    Raises:
        ImageError: it cannot be read, is of no format that is known, is damaged, or has more than 50 megapixels.
        UsageError: there is no such frame, or the window is none or cannot be applied.
    """
    wanted = parse_window(window) if window is not None else None
    if isinstance(source, (np.ndarray, Image.Image)):
        if frame != "middle" or wanted is not None:
            raise UsageError("Expected a DICOM file for a frame or a window, but pixels were given; leave them out.")
        if isinstance(source, np.ndarray):
            return _from_array(source, "array")
        return _from_array(np.asarray(source.convert("RGB")), "Pillow image")
    if isinstance(source, bytes):
        return _from_bytes(source, "the image", frame, wanted)
    path = Path(source)
    return _from_bytes(_read(path), path.name, frame, wanted)


def load_pictures(
    source: str | os.PathLike[str], *, frame: int | str = "middle", window: str | None = None
) -> list[Picture]:
    """Read one frame of a file, or all of them.

    Args:
        source: a path.
        frame: which, from 1, `middle`, or `all`.
        window: as for `load_picture`.

    Raises:
        ImageError, UsageError: as for `load_picture`; or `all` are more than 16.
    """
    if frame != "all":
        return [load_picture(source, frame=frame, window=window)]
    first = load_picture(source, frame=1, window=window)
    if first.n_frames > MAX_FRAMES:
        raise UsageError(
            f"Expected at most {MAX_FRAMES} pictures at once, but {Path(source).name} has {first.n_frames}; choose one "
            "with --frame N."
        )
    others = range(2, first.n_frames + 1)
    return [first, *(load_picture(source, frame=number, window=window) for number in others)]


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"Expected an image file, but {path} is a directory; name a file in it.")
        with open(path, "rb") as file:
            # a pipe and a device have no size until they are read
            too_large = os.fstat(file.fileno()).st_size > MAX_FILE_BYTES
            data = b"" if too_large else file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"Expected an image file, but {path} cannot be read ({reason}); check its name and permissions."
        ) from error
    if too_large or len(data) > MAX_FILE_BYTES:
        raise ImageError(f"Expected at most {MAX_FILE_BYTES >> 20} MiB, but {path} is larger; scale it down first.")
    return data


def _from_bytes(data: bytes, name: str, frame: int | str, window: Window | None) -> Picture:
    if not data:
        raise ImageError(f"Expected an image, but {name} is empty (0 bytes); export it again.")
    kind = sniff(data)
    if kind not in READABLE:
        given = f"is {kind}" if kind else "is no image format that is known"
        raise ImageError(
            f"Expected a {', '.join(READABLE[:-1])} or {READABLE[-1]} image, but {name} {given}; convert it to PNG."
        )
    decoded = _decode(data, name, kind, frame, window)
    pixels = decoded.pixels
    warnings = (*decoded.warnings, *picture_warnings(pixels, raster=kind != "DICOM"))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return Picture(
        np.ascontiguousarray(pixels),
        hashlib.sha256(data).hexdigest(),
        kind,
        decoded.notes,
        warnings,
        decoded.tags,
        decoded.n_frames,
    )


def _decode(data: bytes, name: str, kind: str, frame: int | str, window: Window | None) -> Decoded:
    if kind == "DICOM":
        check_bounds(data, name)  # here, since refusing a file should not take the start of a process
        wanted = list(astuple(window)) if window is not None else None
        return decode_isolated("dicom", data, name, frame=frame, window=wanted)
    if window is not None:
        raise UsageError(f"Expected a DICOM file for a window, but {name} is {kind}; leave out --window.")
    if frame not in ("middle", 1):
        raise UsageError(
            f"Expected a frame that exists, but of {kind} only the first is read and {frame} was asked for."
        )
    check_raster_bounds(data, kind, name)
    return decode_raster(data, name, kind) if kind in _IN_PROCESS else decode_isolated(kind, data, name)


def _from_array(pixels: NDArray[np.uint8], name: str) -> Picture:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ImageError(
            f"Expected uint8 pixels of shape (h, w, 3) or (h, w), but the {name} is {pixels.dtype} {pixels.shape}; "
            "scale 16-bit values to 8 bits and drop other channels first."
        )
    if not 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
        raise ImageError(
            f"Expected 1 to {MAX_PIXELS} pixels, but the {name} is {pixels.shape[1]} x {pixels.shape[0]}; scale it."
        )
    warnings = tuple(picture_warnings(pixels, raster=False))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, hashlib.sha256(pixels.data).hexdigest(), name, warnings=warnings)
