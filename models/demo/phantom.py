"""Schematic chest radiographs with known findings, drawn with numpy alone.

    findings = phantom.sample(rng)          # the findings to draw
    picture = phantom.draw(findings, rng)   # uint8 (h, w), bright = dense

Sides are the PATIENT's, shown in radiological convention: the patient's right is at the viewer's left, as if the
patient faced the viewer. The same generator state always gives the same picture.

The drawing frame: u runs from -1 (viewer's left, patient's right) to +1, v from about -1 (neck) to +1 (abdomen); one
unit is half of the thorax. These are drawings: they teach a demo model to look, and nobody anything about medicine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["right", "left"]
Zone = Literal["upper", "middle", "lower"]
Field = NDArray[np.float32]

SIDES: tuple[Side, ...] = ("right", "left")
ZONES: tuple[Zone, ...] = ("upper", "middle", "lower")

# Where the centre of a nodule may lie: (|u| low, |u| high, v low, v high). The gaps between the zones keep the zone
# of every nodule unambiguous; the lower boxes stay clear of the heart and above any effusion on the same side.
_NODULE_BOX: dict[tuple[Side, Zone], tuple[float, float, float, float]] = {
    ("right", "upper"): (0.28, 0.44, -0.58, -0.44),
    ("right", "middle"): (0.38, 0.56, -0.16, -0.04),
    ("right", "lower"): (0.42, 0.60, 0.18, 0.26),
    ("left", "upper"): (0.28, 0.44, -0.58, -0.44),
    ("left", "middle"): (0.40, 0.56, -0.16, -0.04),
    ("left", "lower"): (0.58, 0.64, 0.17, 0.25),
}


@dataclass(frozen=True)
class Findings:
    """The findings of a phantom; a phantom without any finding is normal.

    nodule: None, or the side and the zone of a single lung nodule. effusion: None, or the side of a pleural effusion.
    enlarged_heart: whether the heart is wider than half of the thorax.
    """

    nodule: tuple[Side, Zone] | None = None
    effusion: Side | None = None
    enlarged_heart: bool = False

    @property
    def count(self) -> int:
        """Return the number of present findings, 0 to 3."""
        return (self.nodule is not None) + (self.effusion is not None) + self.enlarged_heart

    @property
    def normal(self) -> bool:
        """Return whether there is no finding."""
        return self.count == 0


def all_findings() -> list[Findings]:
    """Return every possible combination, 42 in all, in a fixed order."""
    nodules: list[tuple[Side, Zone] | None] = [None, *((side, zone) for side in SIDES for zone in ZONES)]
    effusions: list[Side | None] = [None, *SIDES]
    return [Findings(n, e, heart) for n in nodules for e in effusions for heart in (False, True)]


def sample(rng: np.random.Generator) -> Findings:
    """Draw findings so that every yes/no fact is even.

    The number of findings is uniform over 0 to 3, and which ones is uniform too, so each is present in half of the
    pictures; a quarter are normal and a quarter show exactly one finding. Side and zone are uniform.
    """
    present = rng.permutation(3) < rng.integers(4)
    side, effusion_side = (SIDES[i] for i in rng.integers(2, size=2))
    zone = ZONES[rng.integers(3)]
    return Findings(
        nodule=(side, zone) if present[0] else None,
        effusion=effusion_side if present[1] else None,
        enlarged_heart=bool(present[2]),
    )


def draw(findings: Findings, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one phantom.

    Args:
        findings: Findings to draw.
        rng: Source of every variation: size, position, rotation, exposure, anatomy, noise.

    Returns:
        uint8 (h, w), grey levels, 200 to 300 px a side, square in about half of the cases.
    """
    return draw_located(findings, rng)[0]


def draw_located(findings: Findings, rng: np.random.Generator) -> tuple[NDArray[np.uint8], tuple[int, int] | None]:
    """Draw one phantom and return it with the pixel (row, column) at the centre of the nodule, if there is one."""
    u, v, pixel = _frame(rng)
    jitter = _Anatomy(rng)
    density = _body(u, v, pixel, jitter)
    lungs = {side: _lung(u, v, pixel, jitter, side) for side in SIDES}
    if findings.effusion is not None:
        lungs[findings.effusion] *= 1.0 - _fluid(u, v, pixel, findings, rng)
    aerated = lungs["right"] + lungs["left"]
    density += aerated * (jitter.lung_density - density)
    density += aerated * (_vessels(u, v, jitter) + 0.05 * jitter.texture(u.shape))
    heart = _heart(u, v, pixel, jitter, enlarged=findings.enlarged_heart)
    density += heart * (np.maximum(density, 0.70) - density)
    density = _bones(density, u, v, pixel, jitter)
    centre = None
    if findings.nodule is not None:
        nodule, centre = _nodule(u, v, pixel, findings.nodule, rng)
        density += nodule
    return _expose(density, rng), centre


class _Anatomy:
    """The variations of one patient, drawn once so that all parts agree. Lengths are in frame units."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.lung_density = rng.uniform(0.16, 0.26)
        self.outer = rng.uniform(0.72, 0.79)  # lateral lung border at the base
        self.apex = rng.uniform(-0.84, -0.78)
        self.base = rng.uniform(0.58, 0.66)  # costophrenic angle
        self.dome = rng.uniform(0.12, 0.17)  # height of the diaphragm above that angle
        self.ribs = rng.uniform(0.05, 0.11)
        self.rib_phase = rng.uniform(0.0, 1.0)
        self.rib_pitch = rng.uniform(0.18, 0.22)

    def texture(self, shape: tuple[int, ...]) -> Field:
        """Return a smooth random field, float32 of this shape, about -1 to 1."""
        return _smooth_noise(shape, cells=14, rng=self.rng)


def _frame(rng: np.random.Generator) -> tuple[Field, Field, float]:
    """Return the frame coordinates u, v (float32 (h, w)) of every pixel, and the size of a pixel in frame units."""
    height = int(rng.integers(200, 289))
    width = height if rng.random() < 0.5 else int(np.clip(height * rng.uniform(0.8, 1.25), 200, 300))
    pixel = 2.0 / (min(height, width) * rng.uniform(0.92, 1.04))
    x = (np.arange(width, dtype=np.float32) - width / 2) * np.float32(pixel) + np.float32(rng.uniform(-0.06, 0.06))
    y = (np.arange(height, dtype=np.float32) - height / 2) * np.float32(pixel) + np.float32(rng.uniform(-0.06, 0.06))
    angle = np.radians(rng.uniform(-4.0, 4.0))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = x[None, :] * cos - y[:, None] * sin
    v = x[None, :] * sin + y[:, None] * cos
    return u, v, pixel


def _edge(distance: Field, softness: float) -> Field:
    """Return a soft step: 0 below -softness, 1 above +softness (smoothstep), of a signed distance in frame units."""
    t = np.clip(distance * np.float32(0.5 / softness) + np.float32(0.5), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _body(u: Field, v: Field, pixel: float, jitter: _Anatomy) -> Field:
    """Draw soft tissue in front of air: trunk, shoulders and neck; brighter towards the abdomen."""
    trunk = 0.95 + 0.25 * np.clip(-v - 0.35, 0.0, 1.0)
    shoulder_line = -0.93 + 0.42 * np.clip(np.abs(u) - 0.30, 0.0, None) ** 1.5
    inside = _edge(trunk - np.abs(u), 3 * pixel) * _edge(v - shoulder_line, 3 * pixel)
    neck = _edge(0.30 - np.abs(u), 0.06) * _edge(-0.6 - v, 0.1)
    tissue = 0.56 + 0.12 * _edge(v - 0.45, 0.25)
    return 0.03 + np.maximum(inside, neck) * (tissue - 0.03)


def _lung(u: Field, v: Field, pixel: float, jitter: _Anatomy, side: Side) -> Field:
    """Return the aerated area of one lung, float32 (h, w) in 0..1, bounded below by the dome of the diaphragm."""
    across = -u if side == "right" else u
    depth = np.clip((v - jitter.apex) / (jitter.base - jitter.apex), 0.0, 1.0)
    outer = jitter.outer * (0.56 + 0.44 * np.sqrt(depth * (2.0 - depth)))
    top = jitter.apex + 1.6 * (across - 0.30) ** 2
    base = jitter.base - (0.04 if side == "right" else 0.0)
    floor = base - jitter.dome * np.clip(1.0 - ((across - 0.38) / 0.38) ** 2, 0.0, 1.0)
    inside = _edge(outer - across, 3 * pixel) * _edge(across - 0.12, 4 * pixel)
    return inside * _edge(v - top, 4 * pixel) * _edge(floor - v, 3 * pixel)


def _vessels(u: Field, v: Field, jitter: _Anatomy) -> Field:
    """Draw hilar shadows and the markings that fan out of them."""
    across, drop = np.abs(u) - 0.17, v + 0.08
    hilum = np.exp(-(across**2) / 0.012 - drop**2 / 0.05)
    angle = np.arctan2(drop, across + 0.02)
    fan = np.clip(np.cos(9.0 * angle + 6.28 * jitter.rib_phase), 0.0, 1.0) ** 3
    return 0.22 * hilum + 0.05 * fan * np.exp(-3.0 * np.hypot(across, drop))


def _heart(u: Field, v: Field, pixel: float, jitter: _Anatomy, *, enlarged: bool) -> Field:
    """Return the cardiac silhouette with the upper mediastinum, float32 (h, w) in 0..1."""
    ratio = jitter.rng.uniform(0.575, 0.635) if enlarged else jitter.rng.uniform(0.39, 0.45)
    half_width = ratio * jitter.outer
    centre = 0.42 * half_width  # two thirds of the heart lie on the patient's left
    tilt = 0.35 * (u - centre)
    ellipse = np.hypot((u - centre) / half_width, (v - 0.28 - tilt) / (0.24 + 0.30 * half_width))
    silhouette = _edge((1.0 - ellipse) * half_width, 3 * pixel)
    mediastinum = _edge(0.15 - np.abs(u - 0.01), 4 * pixel) * _edge(0.4 - v, 0.2)
    return np.maximum(silhouette, 0.9 * mediastinum)


def _bones(density: Field, u: Field, v: Field, pixel: float, jitter: _Anatomy) -> Field:
    """Add posterior and anterior ribs, clavicles, the spine and the trachea in front of it."""
    across = np.abs(u)
    cage = _edge(jitter.outer + 0.07 - across, 0.05) * _edge(across - 0.06, 0.04)
    cage = cage * _edge(v + 0.80, 0.08) * _edge(0.75 - v, 0.15)
    posterior = np.cos(6.2832 * ((v - 0.30 * across * across) / jitter.rib_pitch + jitter.rib_phase))
    anterior = np.cos(6.2832 * ((v - 0.75 * across) / (1.2 * jitter.rib_pitch) + jitter.rib_phase))
    ribs = _edge(posterior - 0.30, 0.35) + 0.45 * _edge(anterior - 0.45, 0.35) * _edge(across - 0.3, 0.1)
    clavicle_line = -0.70 - 0.18 * (across - 0.1) + 0.05 * np.sin(7.0 * across)
    clavicle = (
        _edge(0.028 - np.abs(v - clavicle_line), 2 * pixel) * _edge(0.72 - across, 0.05) * _edge(across - 0.08, 0.03)
    )
    spine = _edge(0.085 - across, 0.03) * (0.8 + 0.2 * np.cos(6.2832 * v / 0.15))
    trachea = _edge(0.035 - np.abs(u + 0.01), 2 * pixel) * _edge(-0.25 - v, 0.04)
    return density + jitter.ribs * (cage * ribs + 1.2 * clavicle + 0.9 * spine) - 0.12 * trachea


def _fluid(u: Field, v: Field, pixel: float, findings: Findings, rng: np.random.Generator) -> Field:
    """Return where fluid replaces air at the base of one lung, 0..1: below a meniscus that climbs the lateral wall."""
    across = -u if findings.effusion == "right" else u
    below_nodule = findings.nodule == (findings.effusion, "lower")
    level = rng.uniform(0.39, 0.43) if below_nodule else rng.uniform(0.20, 0.37)
    surface = level - rng.uniform(0.25, 0.45) * np.clip(across - 0.45, 0.0, 1.0) ** 1.5
    return _edge(v - surface, 0.03 + pixel)


def _nodule(
    u: Field, v: Field, pixel: float, place: tuple[Side, Zone], rng: np.random.Generator
) -> tuple[Field, tuple[int, int]]:
    """Return a round, fairly sharp spot to add to the density, and the pixel (row, column) at its centre."""
    low_u, high_u, low_v, high_v = _NODULE_BOX[place]
    centre_u = rng.uniform(low_u, high_u) * (-1 if place[0] == "right" else 1)
    centre_v = rng.uniform(low_v, high_v)
    radius = rng.uniform(0.075, 0.105)
    distance = np.hypot(u - centre_u, (v - centre_v) / rng.uniform(0.9, 1.1))
    row, column = np.unravel_index(np.argmin(distance), distance.shape)
    return rng.uniform(0.34, 0.46) * _edge(radius - distance, 0.02 + pixel), (int(row), int(column))


def _smooth_noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> Field:
    """Return the bilinear interpolation of a cells x cells grid of normal numbers, float32 of the given (h, w)."""
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    for axis, length in enumerate(shape):
        position = np.linspace(0.0, cells - 1e-3, length, dtype=np.float32)
        index = position.astype(np.int64)
        part = (position - index).reshape((-1, 1) if axis == 0 else (1, -1))
        grid = np.take(grid, index, axis) * (1.0 - part) + np.take(grid, index + 1, axis) * part
    return grid * np.float32(0.5)


def _expose(density: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn density into grey levels: uneven illumination, gamma, contrast, brightness, grain; then uint8."""
    uneven = 1.0 + 0.08 * _smooth_noise(density.shape, cells=2, rng=rng)
    grey = np.clip(density * uneven, 0.0, 1.2) ** np.float32(rng.uniform(0.85, 1.25))
    grey = grey * np.float32(rng.uniform(0.9, 1.2)) + np.float32(rng.uniform(-0.04, 0.08))
    grey += np.float32(rng.uniform(0.008, 0.03)) * rng.standard_normal(density.shape, dtype=np.float32)
    return (np.clip(grey, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
