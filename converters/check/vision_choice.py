"""Chooses the weights of the vision graph: the fastest whose image tokens are close to those of the tower in float32.

The judge opens the written graph as the runtime does, but without the kernels that only some machines have. It runs the
graph on some pictures and compares each image token with that of the plain numpy model in float32. The judge shares no
code with the graph, so it also finds mistakes in the graph, for instance a transposed projector. The journal keeps its
verdict under the hash of the file, so that a resumed conversion does not judge a graph again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bimedix_edge.bundle import VisionFidelity, VisionSpec
from bimedix_edge.converters.check.parity import cosines
from bimedix_edge.converters.check.reference import image_embeds
from bimedix_edge.converters.decoder.quantize import n_threads
from bimedix_edge.converters.job.journal import Journal
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.config import CheckpointConfig
from bimedix_edge.converters.vision.graph import OPSET
from bimedix_edge.converters.vision.weights import VisionChoice, VisionWeights, tried_weights
from bimedix_edge.imaging.preprocess import preprocess

__all__ = ["GATE", "VisionJudge", "write_chosen"]

# the lowest cosine of an image token at which rounded weights are accepted
GATE = 0.999


class VisionJudge:
    """Compares graphs with the float32 tokens of some pictures.

    A thread computes the tokens while the block runs; the conversion, which waits for the disk, leaves it a core.

    Args:
        checkpoint: The source.
        pictures: Pictures, uint8 (h, w, 3) each.
        journal: Journal with the verdicts of an interrupted run; it keeps the new ones.
    """

    def __init__(self, checkpoint: Checkpoint, pictures: Sequence[NDArray[np.uint8]], journal: Journal) -> None:
        self._checkpoint = checkpoint
        self._pictures = pictures
        self._journal = journal
        self._weights = _Interruptible(checkpoint)
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[NDArray[np.float32]] | None = None
        digest = hashlib.sha256()
        for picture in pictures:
            digest.update(f"{picture.shape}".encode() + picture.tobytes())
        self._pictures_sha256 = digest.hexdigest()

    def __enter__(self) -> VisionJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.stopped = True
        self._pool.shutdown(cancel_futures=True)

    def start(self, wanted: VisionChoice) -> None:
        """Begin to compute the float32 tokens, unless the graph that will be written has been judged.

        Args:
            wanted: See `write_chosen`.
        """
        known = (self.known(kind) for kind in tried_weights(wanted))
        if next((found for found in known if found is None or found[0] >= GATE), None) is None:
            self._start()

    def _start(self) -> Future[NDArray[np.float32]]:
        if self._future is None:
            self._future = self._pool.submit(self._expected)
        return self._future

    def known(self, kind: VisionWeights) -> tuple[float, float] | None:
        """Return the lowest and the mean cosine that a graph had in an interrupted run of this conversion."""
        note = self._journal.note(f"vision {kind}")
        if note is None or note.get("pictures") != self._pictures_sha256:
            return None
        return float(note["cosine_min"]), float(note["cosine_mean"])

    def judge(self, path: Path, kind: VisionWeights) -> tuple[float, float]:
        """Return the lowest and the mean cosine of the image tokens of a whole graph.

        Args:
            path: The ONNX file, in the directory of the journal.
            kind: Weights that it was built with.

        Raises:
            CheckpointError: A weight is NaN or infinite.
            VisionError: ONNX Runtime refuses the graph.
            OSError: The disk is full or fails.
        """
        sha256, note = self._journal.sha256(path.name), self._journal.note(f"vision {kind}")
        if (found := self.known(kind)) is not None and note is not None and note.get("sha256") == sha256:
            return found
        values = self.compare(path, kind)
        lowest, mean = float(values.min()), float(values.mean())
        facts: dict[str, str | float] = {"sha256": sha256, "pictures": self._pictures_sha256}
        self._journal.add_note(f"vision {kind}", {**facts, "cosine_min": lowest, "cosine_mean": mean})
        return lowest, mean

    def fidelity(self, lowest: float, mean: float, choice: str) -> VisionFidelity:
        """Return the manifest's entry for a graph; `choice` is the reason for its weights."""
        # rounded, so that the last bits of a sum, which depend on the machine, do not reach the manifest
        return VisionFidelity(round(lowest, 6), round(mean, 6), len(self._pictures), choice)

    def _expected(self) -> NDArray[np.float32]:
        preprocessing = self._checkpoint.config.vision.preprocessing
        values = np.concatenate([preprocess(picture, preprocessing) for picture in self._pictures])
        # threads of a linear algebra library busy-wait for one another: beside a conversion on the other cores, two of
        # them took six times as long as one; the writer refuses weights that are not finite and names them
        with threadpool_limits(1, user_api="blas"), np.errstate(all="ignore"):
            return image_embeds(self._weights, values, np.float32)

    def compare(self, path: Path, kind: VisionWeights) -> NDArray[np.float64]:
        """Run a graph on the pictures and return the cosine of each image token, float64 (n_tokens of all pictures,).

        Args:
            path: The ONNX file.
            kind: What it was built with.

        Raises:
            CheckpointError: A weight is NaN or infinite.
            VisionError: ONNX Runtime refuses the graph.
        """
        # imported here, since it loads ONNX Runtime
        from bimedix_edge.vision.encoder import EncoderFile, VisionEncoder

        config = self._checkpoint.config
        spec = VisionSpec(config.vision.n_patches, config.decoder.n_embd, kind, OPSET)
        encoder = VisionEncoder(
            EncoderFile(path, "", spec, config.vision.preprocessing),
            n_threads(),
            # by the graph's own definitions: the manifest's figures must not depend on this machine's kernels
            kernels="off",
        )
        pairs = zip(encoder.encode(self._pictures), self._start().result(), strict=True)
        return np.concatenate([cosines(found, expected) for found, expected in pairs])


def write_chosen(
    judge: VisionJudge,
    journal: Journal,
    path: Path,
    wanted: VisionChoice,
    write: Callable[[VisionWeights], None],
) -> tuple[VisionWeights, VisionFidelity]:
    """Write the chosen graph, or for `auto` the first that is good enough, and judge it.

    Args:
        judge: Judge of the graph.
        journal: Journal of its directory.
        path: Path of the graph.
        wanted: Its weights; `auto` tries int8, then 8-bit weights only, and takes float32 if neither passes the gate.
        write: Writes the graph with some weights, except the parts that the journal keeps.

    Returns:
        The weights of the graph, and how close it is to float32.

    Raises:
        CheckpointError, VisionError, OSError: See `VisionJudge.judge`.
    """
    failed = ""
    *first, last = tried_weights(wanted)
    for kind in first:
        known = judge.known(kind)
        if known is None or known[0] >= GATE:
            _begin(journal, path.name, kind)
            write(kind)
            known = judge.judge(path, kind)
        if known[0] >= GATE:
            return kind, judge.fidelity(*known, f"{failed}{kind} passes {GATE}")
        failed += f"{kind} has a token at {known[0]:.6f}, below {GATE}; "
    _begin(journal, path.name, last)
    write(last)
    choice = f"{failed}so it is {last}" if wanted == "auto" else "asked for"
    return last, judge.fidelity(*judge.judge(path, last), choice)


def _begin(journal: Journal, name: str, kind: VisionWeights) -> None:
    """Drop the graph if it has other weights."""
    begun = journal.note("vision")
    if begun is None or begun.get("weights") != kind:
        journal.forget(name)
        journal.add_note("vision", {"weights": kind})


class _Interruptible:
    """A checkpoint that refuses to read weights once it is stopped, so that Ctrl-C need not wait for the judge."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config: CheckpointConfig = checkpoint.config
        self.stopped = False

    def rows(self, name: str, select: slice) -> NDArray[np.float32]:
        """See `Checkpoint.rows`."""
        if self.stopped:
            raise InterruptedError("the conversion has ended")
        return self._checkpoint.rows(name, select)
