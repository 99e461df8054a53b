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
from bimedix_edge.imaging.notes import Note
from bimedix_edge.imaging.raster import decode_raster
from bimedix_edge.imaging.raster_bounds import check_raster_bounds
from bimedix_edge.imaging.sniff import READABLE, sniff
from bimedix_edge.imaging.window import Window, parse_window
from bimedix_edge.imaging.words import NAMES, Language

__all__ = ["MAX_FILE_BYTES", "MAX_FRAMES", "ImageSource", "Picture", "load_picture", "load_pictures"]

ImageSource = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image

MAX_FILE_BYTES = 512 << 20
# seven images fill BiMediX2's context
MAX_FRAMES = 16
# zlib and libjpeg-turbo do not crash on damaged files, and the headers of these formats state the memory they need
_IN_PROCESS = ("PNG", "JPEG", "BMP")


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        pixels: uint8 (h, w, 3), RGB, C-contiguous.
        sha256: Hash of the file's bytes, or of the pixels if there was no file.
        format: Format of the bytes, such as `PNG`.
        notes: The steps from the file to the pixels; `str()` gives the sentence of each.
        warnings: What to know before believing an answer about the picture.
        tags: From a DICOM header: `modality`, `body_part`, `view`, `laterality` and `window`, as far as stated, and
            nothing else.
        n_frames: Frames in the file.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    format: str
    notes: tuple[Note, ...] = field(default=())
    warnings: tuple[Note, ...] = field(default=())
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

    def words(self, language: Language = "en") -> str:
        """Return format, tags, size and notes in one line."""
        tags = [NAMES[language].get(value, value) for name, value in self.tags.items() if name != "window"]
        size = f"{self.width_px} x {self.height_px}"
        between, after = ("، ", "؛ ") if language == "ar" else (", ", "; ")
        return after.join([between.join([self.format, *tags, size]), *(note.text(language) for note in self.notes)])


def load_picture(source: ImageSource, *, frame: int | str = "middle", window: str | None = None) -> Picture:
    """Read an image from a path, from a file's bytes, from uint8 (h, w, 3) or (h, w) pixels, or from Pillow.

    Args:
        source: The picture.
        frame: Number of a DICOM frame, from 1, or `middle`.
        window: For a grey DICOM picture, CENTER/WIDTH or the name of a preset; by default the file's own window.

    Raises:
        ImageError: The picture cannot be read, has an unknown format, is damaged, or has more than 50 megapixels.
        UsageError: The frame does not exist, or the window is not valid or cannot be applied.
    """
    wanted = parse_window(window) if window is not None else None
    if isinstance(source, (np.ndarray, Image.Image)):
        if frame != "middle" or wanted is not None:
            raise UsageError("Pixels have no frames and no window; only DICOM files do. Leave frame and window out.")
        if isinstance(source, np.ndarray):
            return _from_array(source, "array")
        return _from_array(np.asarray(source.convert("RGB")), "Pillow image")
    if isinstance(source, bytes):
        return _from_bytes(source, "The image", frame, wanted)
    path = Path(source)
    return _from_bytes(_read(path), path.name, frame, wanted)


def load_pictures(
    source: str | os.PathLike[str], *, frame: int | str = "middle", window: str | None = None
) -> list[Picture]:
    """Read one frame of a file, or all of them.

    Args:
        source: Path of the file.
        frame: Number of a frame, from 1, `middle`, or `all`.
        window: See `load_picture`.

    Raises:
        ImageError, UsageError: See `load_picture`; also if `all` are more than 16.
    """
    if frame != "all":
        return [load_picture(source, frame=frame, window=window)]
    first = load_picture(source, frame=1, window=window)
    if first.n_frames > MAX_FRAMES:
        raise UsageError(
            f"{Path(source).name} has {first.n_frames} frames, more than the {MAX_FRAMES} pictures that can be read at "
            "once. Choose one with --frame N."
        )
    others = range(2, first.n_frames + 1)
    return [first, *(load_picture(source, frame=number, window=window) for number in others)]


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a directory, not an image file. Name a file in it.")
        with open(path, "rb") as file:
            # a pipe and a device have no size until they are read
            too_large = os.fstat(file.fileno()).st_size > MAX_FILE_BYTES
            data = b"" if too_large else file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{path} cannot be read ({reason}). Check its name and permissions.") from error
    if too_large or len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{path} is larger than the limit of {MAX_FILE_BYTES >> 20} MiB. Scale it down first.")
    return data


def _from_bytes(data: bytes, name: str, frame: int | str, window: Window | None) -> Picture:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes). Export it again.")
    kind = sniff(data)
    if kind not in READABLE:
        content = f"is {kind}" if kind else "has no image format that is known"
        raise ImageError(f"{name} {content}. Export it as {', '.join(READABLE[:-1])} or {READABLE[-1]}.")
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
        raise UsageError(f"{name} is {kind}, and a window fits grey DICOM pictures only. Leave the window out.")
    if frame not in ("middle", 1):
        raise UsageError(f"{name} is {kind}, of which only the first picture is read. Leave out frame {frame}.")
    check_raster_bounds(data, kind, name)
    return decode_raster(data, name, kind) if kind in _IN_PROCESS else decode_isolated(kind, data, name)


def _from_array(pixels: NDArray[np.uint8], name: str) -> Picture:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ImageError(
            f"The {name} is {pixels.dtype} {pixels.shape}, not uint8 of shape (h, w, 3) or (h, w). Scale 16-bit values "
            "to 8 bits and drop other channels first."
        )
    if not 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
        raise ImageError(
            f"The {name} is {pixels.shape[1]} x {pixels.shape[0]}; it may have 1 to {MAX_PIXELS} pixels. Scale it."
        )
    warnings = tuple(picture_warnings(pixels, raster=False))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, hashlib.sha256(pixels.data).hexdigest(), name, warnings=warnings)
