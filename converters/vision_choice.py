"""Which weights the vision graph gets: the fastest whose image tokens are still those of the tower in float32.

A graph is tried before it is chosen: written to a scratch file, opened as the runtime opens it, and run on some
pictures; each image token is compared with that of the plain numpy model in float32. The judge shares nothing with the
graph, so a mistake in the graph, a transposed projector for instance, fails here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal

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

__all__ = ["GATE", "Trial", "VisionJudge"]

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
        self._tokens: list[NDArray[np.float32]] = []

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

    def expect(self, should_stop: Callable[[], bool]) -> None:
        """Compute the tokens that graphs are compared with, seconds a picture, where that was not done before.

        Args:
            should_stop: asked before each picture; what is missing is computed when it is needed.
        """
        preprocessing = self._checkpoint.config.vision.preprocessing
        while len(self._tokens) < len(self._pictures) and not should_stop():
            values = preprocess(self._pictures[len(self._tokens)], preprocessing)
            self._tokens.append(image_embeds(self._checkpoint, values, np.float32)[0])

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
        self.expect(lambda: False)
        pairs = zip(self._pictures, self._tokens, strict=True)
        return np.concatenate([cosines(encoder.encode(picture), tokens) for picture, tokens in pairs])


class Trial:
    """The choice of the weights on a thread of its own, beside the writing of the decoder.

    Args:
        judge: which compares.
        wanted: the weights, or `auto` to choose them.
        scratch, progress: see `VisionJudge.choose`; called on the thread.
    """

    def __init__(
        self,
        judge: VisionJudge,
        wanted: VisionWeights | Literal["auto"],
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> None:
        self._judge = judge
        self._wanted = wanted
        self._scratch = scratch
        self._progress = progress
        self._stopped = False

    def __enter__(self) -> Trial:
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(self._choose)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._pool.shutdown()

    def result(self) -> tuple[VisionWeights, str]:
        """Wait for the choice.

        Raises:
            CheckpointError, VisionError, OSError: see `VisionJudge.choose`.
        """
        return self._future.result()

    def _choose(self) -> tuple[VisionWeights, str]:
        # an interrupted conversion waits for one picture, not for all
        self._judge.expect(lambda: self._stopped)
        if self._stopped or self._wanted != "auto":
            return VISION_WEIGHTS[-1] if self._wanted == "auto" else self._wanted, "asked for"
        return self._judge.choose(self._scratch, self._progress)
