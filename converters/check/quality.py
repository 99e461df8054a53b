"""The loss of accuracy by conversion: measured on the written files, kept in the manifest, judged by `--strict`.

The decoder is read back from the disk and compared with the checkpoint. Large tensors are sampled, rows in eight runs
from the first to the last, so that the check takes seconds beside minutes of conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bimedix_edge.bundle import Fidelity, Quality, VisionFidelity
from bimedix_edge.converters.check.parity import TensorError, decoder_errors
from bimedix_edge.converters.check.vision_choice import GATE
from bimedix_edge.converters.decoder.gguf import TensorSpec
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.vision.weights import VisionWeights
from bimedix_edge.errors import CheckpointError

__all__ = ["LIMITS", "SAMPLE_VALUES", "VISION_LIMITS", "check_limits", "measure_decoder", "quality_of"]

SAMPLE_VALUES = 1 << 18
_N_WORST = 5
# relative RMS of one tensor. Normally distributed weights give two thirds of this; README.md has the figures for them,
# for weights with heavy tails, and for the demo model's
LIMITS: dict[str, float] = {
    "F32": 1e-6, "F16": 6e-4, "BF16": 3e-3, "Q8_0": 0.011, "Q6_K": 0.03, "Q5_K": 0.055, "Q5_1": 0.06, "Q5_0": 0.08,
    "Q4_K": 0.11, "Q4_1": 0.12, "Q4_0": 0.14, "IQ4_NL": 0.12, "IQ4_XS": 0.12, "Q3_K": 0.24, "Q2_K": 0.45,
}  # fmt: skip


# the lowest cosine of an image token; float32 differs from the numpy model by the order of its sums only
VISION_LIMITS: dict[VisionWeights, float] = {"float32": 0.99999, "float16": 0.9999, "int8": GATE, "int8_weights": GATE}


def measure_decoder(
    path: Path, checkpoint: Checkpoint, tensors: Sequence[TensorSpec], progress: Callable[[int, int], None]
) -> list[TensorError]:
    """Compare a written decoder with its checkpoint, on a sample of large tensors.

    Args:
        path: The GGUF.
        checkpoint: The source.
        tensors: The declared tensors.
        progress: Called with the number of compared tensors and of all tensors.

    Raises:
        CheckpointError: The file has other tensors, shapes or types than tensors.
    """
    types = {tensor.name: tensor.kind for tensor in tensors}
    errors = []
    for error in decoder_errors(path, checkpoint, types=types, max_values=SAMPLE_VALUES):
        errors.append(error)
        progress(len(errors), len(tensors))
    return errors


def quality_of(errors: Sequence[TensorError], vision: VisionFidelity) -> Quality:
    """Return the summary of the measurements for the manifest."""
    kinds = sorted({error.type for error in errors}, key=list(LIMITS).index)
    by_type = {kind: _together([error for error in errors if error.type == kind]) for kind in kinds}
    worst = sorted(errors, key=lambda error: -error.relative_rms)[:_N_WORST]
    named = {error.name: _fidelity(error.relative_rms, error.cosine, 1) for error in worst}
    return Quality(by_type, named, vision)


def check_limits(errors: Sequence[TensorError], vision: VisionFidelity, weights: VisionWeights) -> None:
    """Refuse a conversion that lost more than its types should.

    Raises:
        CheckpointError: A tensor is farther from its source than its type allows, or an image token than its weights
            allow; the error names the worst.
    """
    beyond = sorted(
        (error for error in errors if error.relative_rms > LIMITS[error.type]),
        key=lambda error: -error.relative_rms / LIMITS[error.type],
    )
    faults = [
        f"{error.name} ({error.type}) has a relative error of {error.relative_rms:.3g}, above {LIMITS[error.type]:g}"
        for error in beyond
    ]
    if vision.cosine_min < VISION_LIMITS[weights]:
        faults.insert(0, f"an image token has the cosine {vision.cosine_min:.6f}, below {VISION_LIMITS[weights]}")
    if faults:
        more = f"; and {len(faults) - _N_WORST} more" if len(faults) > _N_WORST else ""
        raise CheckpointError(
            f"The result is not as close to the checkpoint as --strict demands: {'; '.join(faults[:_N_WORST])}{more}. "
            "Nothing was installed. Choose a type with more bits, or leave --strict out."
        )


def _together(errors: Sequence[TensorError]) -> Fidelity:
    sizes = np.array([error.n_values for error in errors], np.float64)
    squares = np.array([error.relative_rms**2 for error in errors])
    similar = np.array([error.cosine for error in errors])
    mean = float((sizes * similar).sum() / sizes.sum())
    return _fidelity(float(np.sqrt((sizes * squares).sum() / sizes.sum())), mean, len(errors))


def _fidelity(relative_rms: float, cosine: float, n_tensors: int) -> Fidelity:
    # rounded, so that the last bits of a sum, which depend on the machine, do not reach the manifest
    return Fidelity(float(f"{relative_rms:.4g}"), round(cosine, 9), n_tensors)
