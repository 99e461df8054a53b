"""The workloads of a benchmark: prefill, decode and questions about images, each a function that times itself."""

from __future__ import annotations

import collections
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from bimedix_edge.bundle import Bundle, DecoderSpec
from bimedix_edge.chat import Chat
from bimedix_edge.decoder.batches import Run
from bimedix_edge.decoder.decoder import Aborted, Decoder
from bimedix_edge.engine.engine import Engine
from bimedix_edge.events import Cancel
from bimedix_edge.imaging.picture import Picture, load_picture
from bimedix_edge.imaging.preprocess import square
from bimedix_edge.sampling import Sampling

__all__ = ["N_BATCH", "N_CTX", "N_SEQ_MAX", "Ceiling", "Side", "Subject", "Weights", "Workload", "Workloads"]

Ceiling = Literal["read", "int8"]
N_CTX, N_SEQ_MAX, N_BATCH = 2048, 8, 640
_PREFILL_TOKENS = (64, 512, 640)
_SEQUENCES = (1, 2, 4, 8)
_STEPS = 9
# smaller weights may stay in the processor's caches, so memory is not their ceiling
_LARGE_BYTES = 256 << 20
_PICTURE_PX = 512
_QUESTIONS = ("What does this image show?", "Is there anything else to see in it?")


@dataclass(frozen=True)
class Weights:
    """Sizes in a decoder's file that decide how much work an evaluation is.

    Attributes:
        file_bytes: Size of the file.
        read_bytes: Bytes that each evaluation reads: all weights, except embeddings that are only looked up.
        n_token: Weights that every token is multiplied by.
        n_last: Weights of the output layer, which only tokens with logits are multiplied by.
        int8: Whether the products are of int8, not of floating-point numbers.
    """

    file_bytes: int
    read_bytes: int
    n_token: int
    n_last: int
    int8: bool


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    Attributes:
        path: Path of the GGUF file.
        spec: The decoder in it.
        weights: Sizes of its weights.
        bundle: Bundle with the image encoder; None to leave images out.
    """

    path: Path
    spec: DecoderSpec
    weights: Weights
    bundle: Bundle | None = None


@dataclass(frozen=True)
class Side:
    """A decoder loaded for one choice of kernels, and the engine around it where images are measured."""

    name: str
    choice: str
    decoder: Decoder
    engine: Engine | None


@dataclass(frozen=True)
class Workload:
    """One kind of work to measure.

    Attributes:
        name: Name that is shown and that `--only` searches.
        kind: `prefill`, `decode`, `encode`, `first_token` or `follow_up`.
        take: Does the work once and returns its seconds.
        n_tokens: Tokens that are evaluated each time; None for work on images.
        ceiling: What limits the work, memory that is `read` or `int8` products; None where that is not known.
        work: Bytes that are read or int8 operations, as `ceiling` says, each time; 0 without a ceiling.
    """

    name: str
    kind: str
    take: Callable[[Side], float]
    n_tokens: int | None = None
    ceiling: Ceiling | None = None
    work: int = 0


class Workloads:
    """All workloads; each finds the KV cache empty and leaves it empty.

    Args:
        subject: The model.
        cancel: Stops a workload at the next operation, with `Aborted`.
    """

    def __init__(self, subject: Subject, cancel: Cancel) -> None:
        self._subject = subject
        self._cancel = cancel
        self._random = random.Random(0)  # noqa: S311  the choice of tokens is not secret
        pixels = np.random.default_rng(0).integers(0, 256, (_PICTURE_PX, _PICTURE_PX, 3), dtype=np.uint8)
        self._picture = load_picture(pixels)

    def all(self) -> list[Workload]:
        """Return the workloads in the order in which they are measured."""
        found = [*map(self._prefill_of, _PREFILL_TOKENS), *map(self._decode_of, _SEQUENCES)]
        if self._subject.bundle is not None:
            found.append(Workload("image encode", "encode", self._encode))
            found.append(Workload("first token, new image", "first_token", self._first_token))
            found.append(Workload("first token, follow-up", "follow_up", self._follow_up))
        return found

    def warm_up(self, decoder: Decoder) -> None:
        """Read all weights once, since they may still be on the disk alone."""
        self._prefill(_PREFILL_TOKENS[0], decoder)

    def stop_if_asked(self) -> None:
        """Raise `Aborted` if the benchmark was cancelled."""
        if self._cancel.cancelled:
            raise Aborted

    def _prefill_of(self, n: int) -> Workload:
        weights = self._subject.weights
        ops = 2 * (n * weights.n_token + weights.n_last)
        ceiling: tuple[Ceiling | None, int] = ("int8", ops) if weights.int8 else (None, 0)
        return Workload(f"prefill {n} tokens", "prefill", lambda side: self._prefill(n, side.decoder), n, *ceiling)

    def _decode_of(self, n: int) -> Workload:
        n_bytes = self._subject.weights.read_bytes
        ceiling: tuple[Ceiling | None, int] = ("read", n_bytes) if n_bytes >= _LARGE_BYTES else (None, 0)
        name = f"decode {n} {'sequence' if n == 1 else 'sequences'}"
        return Workload(name, "decode", partial(self._decode, n), n, *ceiling)

    def _prefill(self, n: int, decoder: Decoder) -> float:
        seconds = self._evaluate(decoder, 0, n)
        decoder.truncate(0, 0)
        return seconds

    def _decode(self, n: int, side: Side) -> float:
        """Return the median seconds of a decode step of `n` sequences."""
        # the first step also prepares what the later ones reuse
        _, *seconds = [self._step(side.decoder, n, position) for position in range(1 + _STEPS)]
        for seq in range(n):
            side.decoder.truncate(seq, 0)
        return statistics.median(seconds)

    def _step(self, decoder: Decoder, n: int, position: int) -> float:
        if n == 1:
            return self._evaluate(decoder, position, 1)
        self.stop_if_asked()
        tokens = self._tokens(n)
        start_s = time.perf_counter()
        decoder.evaluate([Run(seq, position, [token]) for seq, token in enumerate(tokens)])
        return time.perf_counter() - start_s

    def _evaluate(self, decoder: Decoder, position: int, n: int) -> float:
        """Return the seconds to evaluate `n` tokens in sequence 0, with the logits of the last one."""
        tokens = self._tokens(n)
        start_s = time.perf_counter()
        decoder.evaluate([Run(0, position, tokens)], lambda: self._cancel.cancelled)
        return time.perf_counter() - start_s

    def _tokens(self, n: int) -> list[int]:
        return [self._random.randrange(10, 200) for _ in range(n)]

    def _encode(self, side: Side) -> float:
        vision = _engine(side).vision
        start_s = time.perf_counter()
        vision.encode([square(self._picture.pixels, vision.preprocessing)])
        return time.perf_counter() - start_s

    def _first_token(self, side: Side) -> float:
        """Return the seconds from a question about a new image to the first token of the answer."""
        _engine(side).embeddings.clear()
        with self._chat(side) as chat:
            return self._ask(chat, _QUESTIONS[0], [self._picture])

    def _follow_up(self, side: Side) -> float:
        """Return the seconds from a second question about the same image to the first token of the answer."""
        with self._chat(side) as chat:
            self._ask(chat, _QUESTIONS[0], [self._picture])
            self.stop_if_asked()
            return self._ask(chat, _QUESTIONS[1], [])

    def _chat(self, side: Side) -> Chat:
        assert self._subject.bundle is not None, "without a bundle, images are not measured"
        return Chat(_engine(side), self._subject.bundle.manifest.prompt, Sampling(temperature=0.0), max_tokens=1)

    def _ask(self, chat: Chat, question: str, pictures: Sequence[Picture]) -> float:
        start_s = time.perf_counter()
        collections.deque(chat.ask(question, pictures, cancel=self._cancel), maxlen=0)
        return time.perf_counter() - start_s


def _engine(side: Side) -> Engine:
    assert side.engine is not None, "without an engine, images are not measured"
    return side.engine
