"""The hashes of a checkpoint's files, computed while it is converted.

Reading 16 GB twice costs minutes on a slow disk. The thread that hashes runs a little ahead of the conversion, which
then finds its weights in the system's cache. Since the lead is small, a machine with little memory can keep it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from types import TracebackType

from bimedix_edge.converters.source.safetensors_file import unreadable
from bimedix_edge.errors import CheckpointError

__all__ = ["SourceHashes", "file_states"]

_BLOCK_BYTES = 1 << 20
_AHEAD_BYTES = 512 << 20


class SourceHashes:
    """Hashes files on a separate thread while the block runs.

    Args:
        paths: The files, in about the order in which the conversion reads them.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._states = file_states(paths)
        self.total_bytes = sum(size for _, size, _ in self._states)
        self.done_bytes = 0
        self._limit = _AHEAD_BYTES
        self._stopped = False
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> SourceHashes:
        self._future = self._pool.submit(lambda: {name: self._hash(path) for name, path in self._paths.items()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self.allow(1.0)
        self._pool.shutdown()

    def allow(self, fraction: float) -> None:
        """State which fraction of the files the conversion has read, from 0 to 1."""
        with self._changed:
            self._limit = int(fraction * self.total_bytes) + _AHEAD_BYTES
            self._changed.notify()

    def result(self, progress: Callable[[int, int], None]) -> dict[str, str]:
        """Wait for all hashes and return them as hexadecimal SHA-256 by name.

        Args:
            progress: Called with the bytes done and the bytes in all, and once when all are done.

        Raises:
            CheckpointError: A file cannot be read, or has changed since it was opened.
        """
        self.allow(1.0)
        while True:
            try:
                hashes = self._future.result(timeout=0.2)
                break
            except NotYet:
                progress(self.done_bytes, self.total_bytes)
        progress(self.total_bytes, self.total_bytes)
        if changed := [name for name, *_ in set(file_states(self._paths)) - set(self._states)]:
            raise CheckpointError(
                f"{min(changed)} changed while it was converted. Convert the checkpoint again when it is complete."
            )
        return hashes

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as file:
                while not self._stopped and (block := file.read(_BLOCK_BYTES)):
                    digest.update(block)
                    self._advance(len(block))
        except OSError as error:
            raise unreadable(path, error) from error
        return digest.hexdigest()

    def _advance(self, n_bytes: int) -> None:
        with self._changed:
            self.done_bytes += n_bytes
            self._changed.wait_for(lambda: self.done_bytes < self._limit)


def file_states(paths: Mapping[str, Path]) -> list[tuple[str, int, int]]:
    """Return what reveals a changed file: name, size in bytes, time of the last change in nanoseconds.

    Raises:
        CheckpointError: A file is missing.
    """
    states = []
    for name, path in paths.items():
        try:
            stat = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        states.append((name, stat.st_size, stat.st_mtime_ns))
    return states
