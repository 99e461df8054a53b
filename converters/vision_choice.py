"""Which weights the vision graph gets: the fastest whose image tokens are still those of the tower in float32.

A graph is tried before it is chosen: written to a scratch file, opened as the runtime opens it, and run on some
pictures; each image token is compared with that of the plain numpy model in float32. The judge shares nothing with the
graph, so a mistake in the graph, a transposed projector for instance, fails here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import VisionFidelity, VisionSpec
from bimedix_edge.converters.checkpoint import Checkpoint
from bimedix_edge.converters.parity import cosines
from bimedix_edge.converters.quantize import n_threads
from bimedix_edge.converters.reference import image_embeds
from bimedix_edge.converters.vision_onnx import OPSET, build_vision, vision_parts
from bimedix_edge.converters.vision_weights import VISION_WEIGHTS, VisionWeights
from bimedix_edge.imaging.preprocess import preprocess

__all__ = ["GATE", "VisionJudge"]

# the lowest cosine of an image token at which rounded weights are accepted
GATE = 0.999


class VisionJudge:
    """The float32 tokens of some pictures, which graphs are compared with.

    Args:
        checkpoint: the source.
        pictures: uint8 (h, w, 3) each.
    """

    def __init__(self, checkpoint: Checkpoint, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._checkpoint = checkpoint
        self._pictures = pictures

    def choose(self, scratch: Path, progress: Callable[[int, int], None]) -> tuple[VisionWeights, str]:
        """Try int8, then 8-bit weights only; take float32 if neither passes the gate.

        Args:
            scratch: a path that is free; the file is removed again.
            progress: called with the bytes written and to write, for each graph that is tried.

        Returns:
            The weights, and in words why.

        Raises:
            CheckpointError: a weight is NaN or infinite.
            VisionError: ONNX Runtime refuses the graph.
            OSError: the disk is full or fails.
        """
        failed = ""
        for kind in VISION_WEIGHTS[:-1]:
            try:
                self._write(scratch, kind, progress)
                lowest = self._cosines(scratch, kind).min()
            finally:
                scratch.unlink(missing_ok=True)
            if lowest >= GATE:
                return kind, f"{failed}{kind} passes {GATE}"
            failed += f"{kind} has a token at {lowest:.6f}, below {GATE}; "
        return VISION_WEIGHTS[-1], f"{failed}so it is {VISION_WEIGHTS[-1]}"

    def fidelity(self, path: Path, weights: VisionWeights, choice: str) -> VisionFidelity:
        """Compare a written graph.

        Args:
            path: the ONNX file.
            weights: what it was built with.
            choice: why it has these weights.

        Raises:
            VisionError: ONNX Runtime refuses the graph.
        """
        found = self._cosines(path, weights)
        # rounded, so that the last bits of a sum, which depend on the machine, do not reach the manifest
        lowest, mean = (round(float(value), 6) for value in (found.min(), found.mean()))
        return VisionFidelity(lowest, mean, len(self._pictures), choice)

    @cached_property
    def _expected(self) -> list[NDArray[np.float32]]:
        preprocessing = self._checkpoint.config.vision.preprocessing
        values = (preprocess(picture, preprocessing) for picture in self._pictures)
        return [image_embeds(self._checkpoint, value, np.float32)[0] for value in values]

    def _write(self, path: Path, kind: VisionWeights, progress: Callable[[int, int], None]) -> None:
        graph, done = build_vision(self._checkpoint, kind), 0
        parts = vision_parts(self._checkpoint, graph, producer="bimedix-edge", metadata={}, weights=kind)
        total = sum(part.size_bytes for part in parts)
        with path.open("wb") as file:
            for part in parts:
                for step in part.steps():
                    file.write(step())
                done += part.size_bytes
                progress(done, total)

    def _cosines(self, path: Path, kind: VisionWeights) -> NDArray[np.float64]:
        # imported here, since it loads ONNX Runtime; what is judged is what the runtime will run
        from bimedix_edge.vision import VisionEncoder

        config = self._checkpoint.config
        encoder = VisionEncoder(
            path,
            sha256="",
            spec=VisionSpec(config.vision.n_patches, config.decoder.n_embd, kind, OPSET),
            preprocessing=config.vision.preprocessing,
            n_threads=n_threads(),
        )
        pairs = zip(encoder.encode(self._pictures), self._expected, strict=True)
        return np.concatenate([cosines(found, expected) for found, expected in pairs])
