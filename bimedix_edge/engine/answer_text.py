"""An answer's text as its tokens come: whole characters, and nothing that could be part of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["AnswerText"]


class AnswerText:
    """Grows by the bytes of tokens.

    Args:
        stop: Texts that end the answer; none of them is empty.

    Attributes:
        stopped: Whether one of them came; nothing may be added then.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._n_emitted = 0

    def add(self, piece: bytes) -> str:
        """Add a token's bytes, and return the text that is certain now and was not before."""
        self._text += self._utf8.decode(piece)
        found = [at for stop in self._stop if (at := self._text.find(stop, self._n_emitted)) >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
        return self._emit(len(self._text) if self.stopped else len(self._text) - self._n_doubtful())

    def finish(self) -> str:
        """Return the whole text, including an incomplete stop text and, as U+FFFD, an incomplete character."""
        if not self.stopped:
            self._text += self._utf8.decode(b"", final=True)
        return self._text

    def _emit(self, end: int) -> str:
        certain, self._n_emitted = self._text[self._n_emitted : end], end
        return certain

    def _n_doubtful(self) -> int:
        """Return how many characters at the end could be the beginning of a stop text."""
        rest = self._text[self._n_emitted :]
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(rest)), 0, -1):
            if any(stop.startswith(rest[-size:]) for stop in self._stop):
                return size
        return 0
