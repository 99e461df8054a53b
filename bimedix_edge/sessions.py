"""Which conversation owns which sequence of the KV cache, and what is in it.

What a session holds is recorded item by item, one item a position: a token's id, or one row of an image, known by the
key of the image's content. A new prompt reuses the longest common prefix of items of its *own* session. Nothing is
shared between sessions, so an image position is reused only for the very same image in the very same conversation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder import Decoder
from bimedix_edge.errors import PromptError, UsageError

__all__ = ["ImageRow", "Item", "PromptImage", "Session", "SessionTable", "common_prefix"]


@dataclass(frozen=True)
class PromptImage:
    """An image in a prompt; two are equal exactly when the model sees the same.

    Attributes:
        key: hash of pixels, shape, dtype, preprocessing and encoder.
        seen: uint8 (size, size, 3), the pixels after padding and resizing, from which it can be encoded again.
        sha256, width_px, height_px: of the picture as it was given, for reports.
    """

    key: str
    seen: NDArray[np.uint8] = field(compare=False, repr=False)
    sha256: str = field(compare=False)
    width_px: int = field(compare=False)
    height_px: int = field(compare=False)


class ImageRow(NamedTuple):
    """One position of an image."""

    image: PromptImage
    row: int


Item = int | ImageRow


class Session:
    """One conversation's place in the KV cache; made by `SessionTable.open`.

    Attributes:
        items: what its sequence holds, one item a position.
        seq: the sequence's number, or None while it has none.
        busy: whether an answer is being written.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.seq: int | None = None
        self.busy = False
        self.last_used = 0


class SessionTable:
    """All sessions of one decoder. Not thread-safe: the engine's lock is held around every call.

    Args:
        decoder: whose sequences and cells are handed out.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._sessions: list[Session] = []
        self._clock = itertools.count(1)

    def open(self) -> Session:
        """Return a new, empty session."""
        session = Session()
        self._sessions.append(session)
        return session

    def close(self, session: Session) -> None:
        """Forget a session and free its cells; calling it again does nothing."""
        if session in self._sessions:
            self._evict(session)
            self._sessions.remove(session)

    def begin(self, session: Session, prompt: Sequence[Item]) -> int:
        """Give `session` a sequence and room for `prompt`, and return how many positions of it are reused.

        Raises:
            UsageError: the session is busy or closed, or all sequences are.
            PromptError: busy sessions hold the cells that the prompt needs.
        """
        if session not in self._sessions:
            raise UsageError("Expected an open conversation, but this one was closed; start a new one.")
        if session.busy:
            raise UsageError("Expected one answer at a time in a conversation, but one is being written; wait for it.")
        session.busy = True
        try:
            session.last_used = next(self._clock)
            if session.seq is None:
                session.seq = self._free_sequence()
            # the last position is always evaluated, since its logits are not kept
            kept = min(common_prefix(session.items, prompt), len(prompt) - 1)
            self.truncate(session, kept)
            if not self.make_room(needed := len(prompt) - kept + 1):
                raise PromptError(
                    f"Expected {needed} free tokens of context, but the answers being written hold them; "
                    "wait for one to end, or choose a larger --ctx-size."
                )
        except BaseException:
            session.busy = False
            raise
        return kept

    @property
    def n_cells(self) -> int:
        """Return how many cells of the KV cache are in use."""
        return sum(len(session.items) for session in list(self._sessions))

    def make_room(self, n_cells: int) -> bool:
        """Evict idle sessions, the least recently used first, until `n_cells` are free; return whether they are."""
        while self.n_cells + n_cells > self._decoder.n_ctx:
            if not self._evict_oldest():
                return False
        return True

    def truncate(self, session: Session, position: int) -> None:
        """Forget what `session` holds from `position` on."""
        if session.seq is not None and position < len(session.items):
            self._decoder.truncate(session.seq, position)
            del session.items[position:]

    def _free_sequence(self) -> int:
        while True:
            taken = {session.seq for session in self._sessions}
            for seq in range(self._decoder.n_seq_max):
                if seq not in taken:
                    return seq
            if not self._evict_oldest():
                raise UsageError(
                    f"Expected at most {self._decoder.n_seq_max} answers at once, but as many are being written; "
                    "wait for one to end."
                )

    def _evict_oldest(self) -> bool:
        idle = [session for session in self._sessions if session.seq is not None and not session.busy]
        if not idle:
            return False
        self._evict(min(idle, key=lambda session: session.last_used))
        return True

    def _evict(self, session: Session) -> None:
        self.truncate(session, 0)
        session.seq = None


def common_prefix(held: Sequence[Item], wanted: Sequence[Item]) -> int:
    """Return how many items two lists have in common from their beginning on."""
    pairs = zip(held, wanted, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(held), len(wanted)))
