"""Image embeddings: from memory, from the disk, or from the encoder, by the key of an image's content."""

from __future__ import annotations

import collections
import threading

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.engine.image_cache import ImageCache
from bimedix_edge.engine.sessions import PromptImage
from bimedix_edge.vision.encoder import EncodingStop, Stopped, VisionEncoder

__all__ = ["EmbeddingCache", "ImageEmbeddings"]

# longest wait of a stopped encoding for the one before it
_POLL_S = 0.05


class EmbeddingCache:
    """The most recently used embeddings within a memory budget; safe to use from several threads.

    Args:
        max_bytes: Budget for all arrays together; one image of BiMediX2-8B takes 9.4 MB.
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
        """Drop all embeddings."""
        with self._lock:
            self._arrays.clear()


class ImageEmbeddings:
    """The embeddings of images, encoded once and then reused; safe to use from several threads.

    Args:
        vision: Encoder of images that are not cached.
        disk: Cache on the disk; None keeps embeddings in memory only.

    Attributes:
        vision: As given.
        memory: Cache in memory. Engines with the same encoder can share one.
    """

    def __init__(self, vision: VisionEncoder, disk: ImageCache | None = None) -> None:
        self.vision = vision
        self.memory = EmbeddingCache()
        self._disk = disk
        self._encoding = threading.Lock()

    def known(self, image: PromptImage) -> NDArray[np.float32] | None:
        """Return an image's embeddings, float32 (n_tokens, n_embd), if they are in memory or on the disk."""
        embeds = self.memory.get(image.key)
        if embeds is None and self._disk is not None:
            embeds = self._disk.get(image.key, (self.vision.spec.n_tokens, self.vision.spec.n_embd))
            if embeds is not None:
                self.memory.put(image.key, embeds)
        return embeds

    def encode(self, image: PromptImage, stop: EncodingStop) -> NDArray[np.float32]:
        """Return an image's embeddings, float32 (n_tokens, n_embd), and keep them in memory.

        Images are encoded one after the other, since one takes all cores.

        Raises:
            Stopped: `stop` ended the encoding.
            VisionError: The encoder failed.
        """
        while not self._encoding.acquire(timeout=_POLL_S):
            if stop.stopped:
                raise Stopped
        try:
            # another answer may have encoded the same image meanwhile
            if (embeds := self.memory.get(image.key)) is None:
                (embeds,) = self.vision.encode([image.seen], stop)
                self.memory.put(image.key, embeds)
            return embeds
        finally:
            self._encoding.release()

    def keep(self, image: PromptImage, embeds: NDArray[np.float32]) -> None:
        """Write an image's embeddings to the disk, if there is a cache."""
        if self._disk is not None:
            self._disk.put(image.key, embeds)

    def clear(self) -> None:
        """Drop what is in memory."""
        self.memory.clear()
