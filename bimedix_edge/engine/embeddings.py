"""Image embeddings kept in memory for reuse, by the key of their content; see `image_cache` for the disk."""

from __future__ import annotations

import collections
import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["EmbeddingCache"]


class EmbeddingCache:
    """The most recently used embeddings within a memory budget; safe to use from several threads.

    Args:
        max_bytes: of all arrays together; one embedding of BiMediX2-8B takes 9.4 MB.
    """

    def __init__(self, max_bytes: int = 128 << 20) -> None:
        self._max_bytes = max_bytes
        self._arrays: collections.OrderedDict[str, NDArray[np.float32]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        """Return whether there are embeddings under `key`."""
        with self._lock:
            return key in self._arrays

    def get(self, key: str) -> NDArray[np.float32] | None:
        """Return the embeddings under `key`, float32 (n_tokens, n_embd), read-only, or None."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: str, embeds: NDArray[np.float32]) -> None:
        """Keep `embeds` under `key`, and drop the least recently used ones that no longer fit."""
        embeds = embeds.copy()
        embeds.flags.writeable = False
        with self._lock:
            self._arrays[key] = embeds
            self._arrays.move_to_end(key)
            while sum(array.nbytes for array in self._arrays.values()) > self._max_bytes and len(self._arrays) > 1:
                self._arrays.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._arrays.clear()
