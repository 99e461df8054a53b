"""Images encoded in a thread beside the one that reads the prompt: an encoding can be stopped, and overlapped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError  # noqa: A004  before 3.11 it is not the built-in
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.vision.encoder import Stop

__all__ = ["Lookahead"]

Embeds = NDArray[np.float32]
# how long a user who cancels waits at most before the encoding is told so
_POLL_S = 0.05


class Lookahead:
    """Encodings, and what follows them, in threads that are gone when the `with` block ends, however it ends.

    Args:
        should_stop: whether the answer was cancelled.
        stopped: the exception to raise then.
    """

    def __init__(self, should_stop: Callable[[], bool], stopped: type[Exception]) -> None:
        self._should_stop = should_stop
        self._stopped = stopped
        self._stop = Stop()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="bimedix-edge-encode")
        self._futures: dict[str, Future[Embeds]] = {}
        self._later: list[Future[None]] = []

    def begin(self, key: str, encode: Callable[[Stop], Embeds], then: Callable[[], None] = lambda: None) -> None:
        """Encode in the thread; does nothing if `key` has begun.

        Args:
            key: of the image.
            encode: gives its embeddings, float32 (n_tokens, n_embd).
            then: called in some thread when `wait` will not wait any more.
        """
        if key not in self._futures:
            self._futures[key] = self._pool.submit(encode, self._stop)
            self._futures[key].add_done_callback(lambda _: then())

    def later(self, work: Callable[[], None]) -> None:
        """Do `work`, too, before the block ends; what fails in it is raised there."""
        self._later.append(self._pool.submit(work))

    def begun(self, key: str) -> bool:
        """Return whether `key` has begun and was not waited for."""
        return key in self._futures

    def ready(self, key: str) -> bool:
        """Return whether what has begun is done, so that `wait` returns at once."""
        return self._futures[key].done()

    def wait(self, key: str) -> Embeds:
        """Return the embeddings of what has begun; what failed in the thread is raised here.

        Raises:
            stopped: the answer was cancelled meanwhile.
            VisionError: the encoding failed.
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
