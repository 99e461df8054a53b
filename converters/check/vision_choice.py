"""Which weights the vision graph gets: the fastest whose image tokens are still those of the tower in float32.

A graph is judged as it was written: opened as the runtime opens it, apart from kernels that only some machines have,
and run on some pictures; each image token is compared with that of the plain numpy model in float32. The judge shares
nothing with the graph, so a mistake in the graph, a transposed projector for instance, fails here, too. What it finds
goes into the journal under the hash of the file, so that a conversion that goes on does not ask again.
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
    """The float32 tokens of some pictures, which graphs are compared with.

    While the block runs, a thread computes them: the conversion waits for the disk meanwhile, and leaves it a core.

    Args:
        checkpoint: the source.
        pictures: uint8 (h, w, 3) each.
        journal: what is known from an interrupted run, and what is found out.
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
        """Begin to compute what graphs are compared with, unless the graph that will be written has been judged.

        Args:
            wanted: see `write_chosen`.
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
        """Return the lowest and the mean cosine of the image tokens of a graph that was written whole.

        Args:
            path: the ONNX file, in the directory of the journal.
            kind: what it was built with.

        Raises:
            CheckpointError: a weight is NaN or infinite.
            VisionError: ONNX Runtime refuses the graph.
            OSError: the disk is full or fails.
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
        """Return what the manifest says about a graph; `choice` is why it has its weights."""
        # rounded, so that the last bits of a sum, which depend on the machine, do not reach the manifest
        return VisionFidelity(round(lowest, 6), round(mean, 6), len(self._pictures), choice)

    def _expected(self) -> NDArray[np.float32]:
        preprocessing = self._checkpoint.config.vision.preprocessing
        values = np.concatenate([preprocess(picture, preprocessing) for picture in self._pictures])
        # the threads of a linear algebra library wait for one another in a loop: beside a conversion that has the other
        # cores, two of them took six times as long as one
        # a weight that is not finite is named when it is written
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
            # by the graph's own definitions: the manifest says how close the file is, wherever it was written
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
    """Write the graph that is asked for, or the first that is good enough, and judge it.

    Args:
        judge: of the graph.
        journal: of the directory it is written to.
        path: of the graph.
        wanted: its weights; `auto` tries int8, then 8-bit weights only, and takes float32 if neither passes the gate.
        write: writes the graph with some weights, or what the journal does not have of it.

    Returns:
        The weights it has, and how close it is to float32.

    Raises:
        CheckpointError, VisionError, OSError: see `VisionJudge.judge`.
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
    """Throw the graph away if it has other weights."""
    begun = journal.note("vision")
    if begun is None or begun.get("weights") != kind:
        journal.forget(name)
        journal.add_note("vision", {"weights": kind})


class _Interruptible:
    """A checkpoint that gives no more weights once it is told to stop, so that Ctrl-C need not wait for the judge."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config: CheckpointConfig = checkpoint.config
        self.stopped = False

    def rows(self, name: str, select: slice) -> NDArray[np.float32]:
        """See `Checkpoint.rows`."""
        if self.stopped:
            raise InterruptedError("the conversion has ended")
        return self._checkpoint.rows(name, select)
