"""What llama.cpp is to evaluate: its batches, filled in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from bimedix_edge.decoder.llama import llama_cpp

__all__ = ["BatchBuffers"]


class BatchBuffers:
    """The arrays a llama_batch points to, allocated once."""

    def __init__(self, n_batch: int, n_seq_max: int) -> None:
        self.tokens = (llama_cpp.llama_token * n_batch)()
        self._position = (llama_cpp.llama_pos * n_batch)()
        self._n_seq = (ctypes.c_int32 * n_batch)(*([1] * n_batch))
        self._seq = (llama_cpp.llama_seq_id * 1)()
        pointer = ctypes.POINTER(llama_cpp.llama_seq_id)
        self._seq_of = (pointer * n_batch)(*([ctypes.cast(self._seq, pointer)] * n_batch))
        self._wants_logits = (ctypes.c_int8 * n_batch)()
        self._seqs = (llama_cpp.llama_seq_id * n_seq_max)()
        size = ctypes.sizeof(llama_cpp.llama_seq_id)
        places = [ctypes.addressof(self._seqs) + index * size for index in range(n_seq_max)]
        self._mixed = (pointer * n_batch)()
        self._each_seq = (pointer * n_seq_max)(*(ctypes.cast(place, pointer) for place in places))

    def batch(self, count: int, seq: int, position: int, *, want_logits: bool) -> llama_cpp.llama_batch:
        """Return a batch of `count` positions; its tokens or embeddings are still to be set."""
        if not 1 <= count <= len(self.tokens):
            raise ValueError(f"a batch holds 1 to {len(self.tokens)} positions, not {count}")
        self._seq[0] = seq
        self._position[:count] = list(range(position, position + count))
        ctypes.memset(self._wants_logits, 0, count)
        # llama.cpp computes the output layer for marked positions only
        self._wants_logits[count - 1] = 1 if want_logits else 0
        return self._filled(count, self._seq_of)

    def column(self, seqs: Sequence[int], positions: Sequence[int]) -> llama_cpp.llama_batch:
        """Return a batch of one position of each of some sequences; its tokens are still to be set."""
        count, most = len(seqs), min(len(self.tokens), len(self._seqs))
        if not 1 <= count <= most:
            raise ValueError(f"a batch holds 1 to {most} sequences, not {count}")
        self._seqs[:count] = seqs
        self._position[:count] = positions
        ctypes.memset(self._wants_logits, 1, count)
        return self._filled(count, self._each_seq)

    def columns_and_run(
        self, seqs: Sequence[int], positions: Sequence[int], count: int, seq: int, position: int, *, want_logits: bool
    ) -> llama_cpp.llama_batch:
        """Return a batch of one position of each of some sequences, and behind them `count` of another one."""
        n = len(seqs)
        if not (1 <= n <= len(self._seqs) and count >= 1 and n + count <= len(self.tokens)):
            raise ValueError(f"a batch holds {len(self.tokens)} positions, not {n} and {count}")
        self._seqs[:n] = seqs
        self._seq[0] = seq
        self._position[: n + count] = [*positions, *range(position, position + count)]
        ctypes.memset(self._wants_logits, 1, n)
        for index in range(n, n + count):
            self._wants_logits[index] = 0
        self._wants_logits[n + count - 1] = 1 if want_logits else 0
        self._mixed[:n] = self._each_seq[:n]
        self._mixed[n : n + count] = self._seq_of[:count]
        return self._filled(n + count, self._mixed)

    def _filled(self, count: int, seq_of: Any) -> llama_cpp.llama_batch:
        batch = llama_cpp.llama_batch()
        batch.n_tokens = count
        batch.pos = self._position
        batch.n_seq_id = self._n_seq
        batch.seq_id = seq_of
        batch.logits = self._wants_logits
        return batch
