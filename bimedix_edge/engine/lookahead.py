"""Images encoded in threads beside the one that evaluates the prompt, so that an encoding can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError  # noqa: A004  before 3.11 it is not the built-in
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.vision.encoder import EncodingStop

__all__ = ["Lookahead"]

Embeds = NDArray[np.float32]
# longest time from a user's cancel to the stop of the encoding
_POLL_S = 0.05


class Lookahead:
    """Encodings, and what follows them, in threads that have ended when the `with` block ends, however it ends.

    Args:
        should_stop: Returns whether the answer was cancelled.
        stopped: Exception to raise then.
    """

    def __init__(self, should_stop: Callable[[], bool], stopped: type[Exception]) -> None:
        self._should_stop = should_stop
        self._stopped = stopped
        self._stop = EncodingStop()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="bimedix-edge-encode")
        self._futures: dict[str, Future[Embeds]] = {}
        self._later: list[Future[None]] = []

    def begin(
        self, key: str, encode: Callable[[EncodingStop], Embeds], then: Callable[[], None] = lambda: None
    ) -> None:
        """Encode in a thread; does nothing if the encoding of `key` has begun.

        Args:
            key: Key of the image.
            encode: Returns its embeddings, float32 (n_tokens, n_embd).
            then: Called from some thread when `wait` returns at once.
        """
        if key not in self._futures:
            self._futures[key] = self._pool.submit(encode, self._stop)
            self._futures[key].add_done_callback(lambda _: then())

    def later(self, work: Callable[[], None]) -> None:
        """Do `work`, too, before the block ends; a failure of it is raised there."""
        self._later.append(self._pool.submit(work))

    def begun(self, key: str) -> bool:
        """Return whether the encoding of `key` has begun and `wait` was not called for it."""
        return key in self._futures

    def ready(self, key: str) -> bool:
        """Return whether an encoding that has begun is done, so that `wait` returns at once."""
        return self._futures[key].done()

    def wait(self, key: str) -> Embeds:
        """Return the embeddings of an encoding that has begun; a failure in its thread is raised here.

        Raises:
            stopped: The answer was cancelled meanwhile.
            VisionError: The encoding failed.
        """
        future = self._futures.pop(key)
        while True:
            try:
                return future.result(_POLL_S)
            except TimeoutError:
                if future.done():
                    raise  # by the encoding itself
                if self._should_stop():
                    raise self._stopped from None

    def __enter__(self) -> Lookahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.stop()
        self._pool.shutdown(wait=True)
        if error is None:
            for future in self._later:
                future.result()
