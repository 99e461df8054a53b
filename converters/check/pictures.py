"""Pictures on which the vision graph is judged: drawn, always the same, and not of a patient.

A radiograph, a stained section and a page of sharp edges: a portrait, a square and a landscape. They are not
diagnostic, but they make the tower's activations as uneven as real images do: large dark borders, fine texture, text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["calibration_pictures"]


def calibration_pictures() -> list[NDArray[np.uint8]]:
    """Return the pictures, uint8 (h, w, 3)."""
    rng = np.random.default_rng(20240712)
    return [_radiograph(rng, 420, 360), _section(rng, 384, 384), _page(rng, 256, 400)]


def _radiograph(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A bright trunk with two dark lungs and a heart before a black border."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 0.75 * _ellipse(x, y, (0.0, 0.05), (0.8, 0.95))
    light -= 0.5 * (_ellipse(x, y, (-0.36, -0.05), (0.26, 0.62)) + _ellipse(x, y, (0.36, -0.05), (0.26, 0.62)))
    ribs = 0.12 * np.sin(14 * np.pi * (y + 0.3 * x**2)) * (light > 0.1)
    light += 0.3 * _ellipse(x, y, (0.12, 0.25), (0.3, 0.3)) + ribs
    return _grey(light + 0.02 * rng.standard_normal(light.shape))


def _section(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Pink tissue with a few hundred purple nuclei."""
    colour = np.full((height, width, 3), (0.92, 0.72, 0.84)) + 0.05 * rng.standard_normal((height, width, 1))
    y, x = np.mgrid[0:height, 0:width]
    for centre_y, centre_x, radius in zip(
        rng.uniform(0, height, 220), rng.uniform(0, width, 220), rng.uniform(3, 8, 220), strict=True
    ):
        inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        colour[inside] = (0.42, 0.25, 0.62)
    return (np.clip(colour, 0, 1) * 255).astype(np.uint8)


def _page(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Black marks on white in lines, and a checkerboard."""
    light = np.ones((height, width))
    for top in range(12, height - 12, 18):
        marks = np.repeat(rng.random(width // 4) < 0.45, 4)
        light[top : top + 9, : len(marks)] -= marks
    light[: height // 3, : width // 4] = np.indices((height // 3, width // 4)).sum(0) // 8 % 2
    return _grey(light)


def _ellipse(
    x: NDArray[np.float64], y: NDArray[np.float64], centre: tuple[float, float], half: tuple[float, float]
) -> NDArray[np.float64]:
    """1 inside and 0 outside, with a soft edge."""
    distance = np.sqrt(((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2)
    result: NDArray[np.float64] = 1 / (1 + np.exp(30 * (distance - 1)))
    return result


def _grey(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    shade = (np.clip(light, 0, 1) * 255).astype(np.uint8)
    return np.repeat(shade[..., None], 3, axis=2)
