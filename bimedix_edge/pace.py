"""How long the pieces of a prompt may be, from how quick this machine turns out to be."""

from __future__ import annotations

__all__ = ["LEAST_STEP", "Pace"]

# a run of the prompt that is cut is cut into no fewer: ggml's attention and our kernels add up in another order for few
# positions, and an answer must not depend on how its prompt was cut because of others
LEAST_STEP = 64
# while others write, a piece of a prompt, or a while of encoding, takes as long as so many of their tokens
_TOKENS = 5.0
# while others only wait to be read, and while nobody does: a lone prompt's progress is seen, and whoever comes is not
# kept long
_SHARED_S, _LONE_S = 0.5, 1.0
_LONE_LEAST = 128
# our kernels take so many positions at once
_WHOLE = 16
# of a new measurement in the running mean
_WEIGHT = 0.25


class Pace:
    """Running means of what a step takes.

    Args:
        n_batch: most positions of a step.

    Attributes:
        least_step: fewest positions of a piece that is not the last.
    """

    def __init__(self, n_batch: int) -> None:
        self.least_step = min(LEAST_STEP, n_batch)
        self._n_batch = n_batch
        self._token_s: float | None = None
        self._position_s: float | None = None

    def wrote(self, seconds: float) -> None:
        """Note what a step of writing took."""
        self._token_s = _mean(self._token_s, seconds)

    def read(self, n: int, seconds: float) -> None:
        """Note what a piece of a prompt took; a small one says little about others."""
        if n >= self.least_step:
            self._position_s = _mean(self._position_s, seconds / n)

    def limit(self, *, writes: bool, shared: bool) -> int:
        """Return how many positions the next piece may have.

        Args:
            writes: whether answers are being written meanwhile.
            shared: whether other prompts wait to be read.
        """
        if self._position_s is None:
            return min(_LONE_LEAST, self._n_batch)
        if writes:
            return self._positions(self.pause_s(), self.least_step)
        return self._positions(_SHARED_S if shared else _LONE_S, _LONE_LEAST)

    def pause_s(self) -> float:
        """Return how long those who write wait for somebody's prompt between their tokens."""
        return _TOKENS * (self._token_s or 0.0)

    def _positions(self, seconds: float, least: int) -> int:
        assert self._position_s is not None, "limit has asked"
        whole = int(seconds / self._position_s) // _WHOLE * _WHOLE
        return max(min(least, self._n_batch), min(whole, self._n_batch))


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
