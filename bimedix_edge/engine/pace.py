"""How long the pieces of a prompt may be, from how quick this machine turns out to be."""

from __future__ import annotations

__all__ = ["Pace"]

# while others write, a piece of a prompt takes as long as so many of their tokens; and an image is encoded for so many
# before they get the next one, which takes a few itself since the encoder still computes
_TOKENS, _ENCODING_TOKENS = 6.0, 3.0
# while others only wait to be read, and while nobody does: a lone prompt's progress is seen, and whoever comes is not
# kept long
_SHARED_S, _LONE_S = 0.5, 1.0
_LONE_LEAST = 128
# shorter pieces are hardly quicker: each is a pass over the weights
_LEAST = 16
# pieces are whole multiples of this: kernels take so many positions at once, or twice as many
_WHOLE = 8
# of a new measurement in the running mean
_WEIGHT = 0.25


class Pace:
    """Running means of what a step takes.

    Args:
        n_batch: most positions of a step.
        least_step: fewest positions of a piece of a prompt that is cut: fewer may be added up in another order, and an
            answer must not depend on how its prompt was cut because of others.
    """

    def __init__(self, n_batch: int, least_step: int) -> None:
        self._least_step = max(least_step, min(_LEAST, n_batch))
        self._n_batch = n_batch
        self._token_s: float | None = None
        self._position_s: float | None = None

    def wrote(self, seconds: float) -> None:
        """Note what a step of writing took."""
        self._token_s = _mean(self._token_s, seconds)

    def read(self, n: int, seconds: float) -> None:
        """Note what a piece of a prompt took; a small one says little about others."""
        if n >= self._least_step:
            self._position_s = _mean(self._position_s, max(0.0, seconds - self._pass_s(seconds)) / n)

    def limit(self, *, writes: bool, shared: bool) -> int:
        """Return how many positions the next piece may have.

        Args:
            writes: whether answers are being written meanwhile.
            shared: whether other prompts wait to be read.
        """
        if self._position_s is None:
            return min(_LONE_LEAST, self._n_batch)
        if writes:
            return self._positions(_TOKENS * (self._token_s or 0.0), self._least_step)
        return self._positions(_SHARED_S if shared else _LONE_S, _LONE_LEAST)

    def pause_s(self) -> float:
        """Return how long those who write wait for somebody's image between their tokens."""
        return _ENCODING_TOKENS * (self._token_s or 0.0)

    def _pass_s(self, seconds: float) -> float:
        """Return what a step takes besides its positions: one pass over the weights, as a step of writing is."""
        return min(self._token_s or 0.0, seconds / 2)

    def _positions(self, seconds: float, least: int) -> int:
        assert self._position_s is not None, "limit has asked"
        left = max(0.0, seconds - self._pass_s(seconds))
        whole = int(left / self._position_s) // _WHOLE * _WHOLE if self._position_s else self._n_batch
        return max(min(least, self._n_batch), min(whole, self._n_batch))


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
