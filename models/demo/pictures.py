"""Phantoms as the model sees them: drawn in parallel, roughened, padded, resized; uint8 here, float32 in the tower."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import phantom
from .phantom import Findings

IMAGE_SIZE = 112  # px
PAD_COLOUR = (122, 116, 104)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_CHUNK = 500


@dataclass(frozen=True)
class Pool:
    """Pictures with their findings.

    pixels: uint8 (n, 3, 112, 112). centres: float32 (n, 2), row and column in those pixels of the nodule's centre, NaN
    where there is none.
    """

    pixels: NDArray[np.uint8]
    findings: list[Findings]
    centres: NDArray[np.float32]


def square(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad to a square and resize as LLaVA does.

    Args:
        picture: Grey picture, uint8 (h, w).

    Returns:
        uint8 (3, 112, 112).
    """
    image = Image.fromarray(picture).convert("RGB")
    width, height = image.size
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), PAD_COLOUR)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    resized = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def normalize(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn uint8 (n, 3, h, w) into the tower's pixel_values, float32 of the same shape."""
    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (MEAN, STD))
    return (scaled - mean) / std


def roughen(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Imitate processed files: contrast and brightness in half of the cases, JPEG compression in the other half."""
    if rng.random() < 0.5:
        changed = picture * rng.uniform(0.8, 1.2) + rng.uniform(-25.0, 25.0)
        picture = np.clip(changed, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
        picture = np.asarray(Image.open(buffer))
    return picture


def draw_pool(count: int, seed: tuple[int, int], *, rough: bool, processes: int = 2) -> Pool:
    """Draw `count` phantoms; `seed` is (seed, stream), and equal seeds give equal pools whatever `processes` is."""
    sizes = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
    jobs = [((*seed, index), size, rough) for index, size in enumerate(sizes)]
    with ProcessPoolExecutor(processes) as executor:
        parts = list(executor.map(_draw_chunk, jobs))
    return Pool(
        np.concatenate([part.pixels for part in parts]),
        [findings for part in parts for findings in part.findings],
        np.concatenate([part.centres for part in parts]),
    )


def _draw_chunk(job: tuple[tuple[int, int, int], int, bool]) -> Pool:
    seed, count, rough = job
    rng = np.random.default_rng(seed)
    findings = [phantom.sample(rng) for _ in range(count)]
    pixels = np.empty((count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    centres = np.full((count, 2), np.nan, dtype=np.float32)
    for index, finding in enumerate(findings):
        picture, centre = phantom.draw_located(finding, rng)
        if centre is not None:
            side = max(picture.shape)
            margins = [(side - length) // 2 for length in picture.shape]
            centres[index] = [(at + margin) * IMAGE_SIZE / side for at, margin in zip(centre, margins, strict=True)]
        pixels[index] = square(roughen(picture, rng) if rough else picture)
    return Pool(pixels, findings, centres)
