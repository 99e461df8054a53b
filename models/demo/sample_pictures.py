"""Draws the sample pictures in `samples/`, from a seed that neither training nor scoring uses.

python -m models.demo.sample_pictures models/demo/samples
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from . import phantom
from .phantom import Findings

SEED = 9001
SAMPLES: dict[str, Findings] = {
    "nodule_right_upper": Findings(nodule=("right", "upper")),
    "effusion_left": Findings(effusion="left"),
    "enlarged_heart": Findings(enlarged_heart=True),
    "normal": Findings(),
}


def write_samples(directory: Path) -> None:
    """Write one grey PNG for each sample."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, (name, findings) in enumerate(SAMPLES.items()):
        picture = phantom.draw(findings, np.random.default_rng((SEED, index)))
        Image.fromarray(picture).save(directory / f"{name}.png", optimize=True)


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
