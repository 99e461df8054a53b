"""How long the chunks of a prompt may be, from the speed that this machine turns out to have."""

from __future__ import annotations

__all__ = ["Pace"]

# while answers decode, a chunk takes as long as this many decode steps; an image is encoded for as long as the second
# number before the next one, which takes a few itself since the encoder still computes
_TOKENS, _ENCODING_TOKENS = 6.0, 3.0
# seconds of a chunk while other prompts wait, and while nobody does: a lone prompt still reports its progress, and a
# new one waits no longer than that
_SHARED_S, _LONE_S = 0.5, 1.0
_LONE_LEAST = 128
# shorter chunks are hardly quicker: each is a pass over the weights
_LEAST = 16
# chunks are multiples of this: kernels take this many positions at once, or twice as many
_WHOLE = 8
# weight of a new measurement in the running mean
_WEIGHT = 0.25


class Pace:
    """Running means of what a step takes.

    Args:
        n_batch: Most positions of a step.
        least_step: Fewest positions of a chunk of a prompt that is cut. A shorter one may be summed in another order,
            and an answer must not depend on how other answers cut its prompt.
    """

    def __init__(self, n_batch: int, least_step: int) -> None:
        self._least_step = max(least_step, min(_LEAST, n_batch))
        self._n_batch = n_batch
        self._token_s: float | None = None
        self._position_s: float | None = None

    def decoded(self, seconds: float) -> None:
        """Note what a decode step took."""
        self._token_s = _mean(self._token_s, seconds)

    def prefilled(self, n: int, seconds: float) -> None:
        """Note what a chunk of `n` positions took; a small one says little about others."""
        if n >= self._least_step:
            self._position_s = _mean(self._position_s, max(0.0, seconds - self._pass_s(seconds)) / n)

    def limit(self, *, decodes: bool, shared: bool) -> int:
        """Return the most positions of the next chunk.

        Args:
            decodes: Whether answers are decoding meanwhile.
            shared: Whether other prompts wait for prefill.
        """
        if self._position_s is None:
            return min(_LONE_LEAST, self._n_batch)
        if decodes:
            return self._positions(_TOKENS * (self._token_s or 0.0), self._least_step)
        return self._positions(_SHARED_S if shared else _LONE_S, _LONE_LEAST)

    def pause_s(self) -> float:
        """Return how long decoding answers wait for the encoding of an image between their tokens."""
        return _ENCODING_TOKENS * (self._token_s or 0.0)

    def _pass_s(self, seconds: float) -> float:
        """Return what a step takes besides its positions: one pass over the weights, as a decode step does."""
        return min(self._token_s or 0.0, seconds / 2)

    def _positions(self, seconds: float, least: int) -> int:
        assert self._position_s is not None, "limit has asked"
        left = max(0.0, seconds - self._pass_s(seconds))
        whole = int(left / self._position_s) // _WHOLE * _WHOLE if self._position_s else self._n_batch
        return max(min(least, self._n_batch), min(whole, self._n_batch))


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
