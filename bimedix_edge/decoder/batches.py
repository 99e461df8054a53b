"""Batches of llama.cpp, filled in place from runs of positions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.llama import llama_cpp

__all__ = ["BatchBuffers", "Run"]


class Run(NamedTuple):
    """Consecutive positions of one sequence, as tokens or as embeddings.

    Attributes:
        seq: Number of the sequence, 0 to n_seq_max - 1.
        position: First position of the run. Positions before it are evaluated already, or in an earlier run.
        content: Token ids, or embeddings, float32 (n, n_embd); one or more.
        wants_logits: Whether the logits of the last position are computed, to sample from.
    """

    seq: int
    position: int
    content: Sequence[int] | NDArray[np.float32]
    wants_logits: bool = True


class BatchBuffers:
    """The arrays that a llama_batch points to, allocated once.

    Args:
        n_batch: Most positions of a batch.
        n_outputs: Most positions with logits of a batch.
    """

    def __init__(self, n_batch: int, n_outputs: int) -> None:
        self._n_outputs = n_outputs
        self._tokens = (llama_cpp.llama_token * n_batch)()
        self._positions = (llama_cpp.llama_pos * n_batch)()
        self._wants_logits = (ctypes.c_int8 * n_batch)()
        # each position belongs to one sequence, whose number has its own place in `_seqs`
        self._seqs = (llama_cpp.llama_seq_id * n_batch)()
        self._n_seqs = (ctypes.c_int32 * n_batch)(*([1] * n_batch))
        pointer, size = ctypes.POINTER(llama_cpp.llama_seq_id), ctypes.sizeof(llama_cpp.llama_seq_id)
        places = (ctypes.addressof(self._seqs) + index * size for index in range(n_batch))
        self._seq_of = (pointer * n_batch)(*(ctypes.cast(place, pointer) for place in places))

    def fill(self, runs: Sequence[Run], embeds: NDArray[np.float32] | None) -> llama_cpp.llama_batch:
        """Return a batch of the runs, one after the other; it is valid until the next one, and as long as `embeds`.

        Args:
            runs: What is evaluated.
            embeds: All of it as embeddings, float32 (n, n_embd), C-contiguous; None if the runs hold tokens.

        Raises:
            ValueError: A run is empty, or the runs have too many positions, or too many with logits.
        """
        sizes = [len(run.content) for run in runs]
        n_outputs = sum(run.wants_logits for run in runs)
        if not (all(sizes) and 1 <= sum(sizes) <= len(self._tokens) and n_outputs <= self._n_outputs):
            raise ValueError(
                f"a batch holds 1 to {len(self._tokens)} positions, {self._n_outputs} with logits, in runs of one or "
                f"more; these runs have {sizes} positions, {n_outputs} with logits"
            )
        ctypes.memset(self._wants_logits, 0, sum(sizes))
        end = 0
        for run, size in zip(runs, sizes, strict=True):
            start, end = end, end + size
            self._positions[start:end] = range(run.position, run.position + size)
            self._seqs[start:end] = [run.seq] * size
            self._wants_logits[end - 1] = run.wants_logits
            if embeds is None:
                self._tokens[start:end] = run.content
        batch = llama_cpp.llama_batch()
        batch.n_tokens = end
        batch.token = self._tokens if embeds is None else None
        batch.embd = None if embeds is None else embeds.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos, batch.n_seq_id, batch.seq_id = self._positions, self._n_seqs, self._seq_of
        batch.logits = self._wants_logits
        return batch
