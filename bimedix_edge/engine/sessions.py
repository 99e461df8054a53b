"""Which conversation owns which sequence of the KV cache, and what is in it.

A session records what it holds item by item, one item a position: a token's id, or one row of an image, known by the
key of the image's content. A new prompt reuses the longest common prefix of items of its *own* session. Sessions share
nothing, so an image position is reused only for the same image in the same conversation.

When cells are needed, the table frees those of the least recently used session, after copying them to the host's memory
as far as its budget goes. 640 positions of the 8B are 80 MB; copying them takes a twentieth of a second, computing them
eight seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.errors import UsageError

__all__ = ["PARKED_BYTES", "ImageRow", "Item", "PromptImage", "Session", "SessionTable", "common_prefix"]

PARKED_BYTES = 512 << 20
# fewer positions than this are computed again as quickly
_LEAST_PARKED = 32


@dataclass(frozen=True)
class PromptImage:
    """An image in a prompt; two are equal exactly when the model sees the same.

    Attributes:
        key: Hash of pixels, shape, dtype, preprocessing, encoder and scope.
        seen: Pixels after padding and resizing, uint8 (size, size, 3), from which it can be encoded again.
        sha256: Hash of the picture as it was given, for reports.
        width_px, height_px: Size of that picture.
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
        items: Contents of its sequence or of its copy, one item a position.
        seq: Number of its sequence; None while it has none.
        copy: Copy of its sequence in the host's memory while it has no number; None without a copy.
        busy: Whether the engine works on an answer in it, so that its cells cannot be freed.
        taken: Whether a reader has an answer in it, so that there can be no second one.
        closed: Whether it was given back.
        last_used: Number of its last use; greater is later.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.seq: int | None = None
        self.copy: bytearray | None = None
        self.busy = False
        self.taken = False
        self.closed = False
        self.last_used = 0


class SessionTable:
    """All sessions of one decoder. Only the thread that evaluates calls it, except `open` and `n_cells`.

    Args:
        decoder: Decoder with the sequences and cells.
        parked_bytes: Budget for the copies of sessions that are not busy.

    Attributes:
        parked_bytes: As given; it can be changed.
    """

    def __init__(self, decoder: Decoder, parked_bytes: int = PARKED_BYTES) -> None:
        self._decoder = decoder
        self.parked_bytes = parked_bytes
        self._sessions: list[Session] = []
        self._clock = itertools.count(1)

    def open(self) -> Session:
        """Return a new, empty session."""
        session = Session()
        self._sessions.append(session)
        return session

    def close(self, session: Session) -> None:
        """Forget a session and free its cells; calling it again does nothing."""
        session.closed = True
        if session in self._sessions:
            self.truncate(session, 0)
            session.seq = session.copy = None
            self._sessions.remove(session)

    def close_all(self) -> None:
        """Forget all sessions, since their decoder is about to be closed."""
        for session in self._sessions:
            session.closed = True
            session.seq = session.copy = None
            session.items.clear()
        self._sessions.clear()

    @property
    def n_cells(self) -> int:
        """Return how many cells of the KV cache are in use."""
        return sum(len(session.items) for session in list(self._sessions) if session.seq is not None)

    def begin(self, session: Session, prompt: Sequence[Item], spare: int) -> int | None:
        """Give `session` a sequence and room for `prompt`, and return how many positions of it are reused.

        Args:
            session: Session, which becomes busy.
            prompt: The whole prompt.
            spare: Number of cells that must be free besides, so that the answer can be expected to go on.

        Returns:
            None if busy sessions hold the sequences or cells; nothing has changed then.

        Raises:
            UsageError: The session is closed.
        """
        if session.closed:
            raise UsageError("The conversation is closed. Start a new one.")
        # the last position is always evaluated, since its logits are not kept
        kept = min(common_prefix(session.items, prompt), len(prompt) - 1)
        held = len(session.items) if session.seq is not None else 0
        if not self._could_free(session, len(prompt) + spare - held):
            return None
        session.busy = True
        if session.copy is not None and not (kept and self._could_free(session, len(session.items))):
            self._drop_copy(session)
            kept = 0
        self._enter(session, max(len(prompt), len(session.items)) - held)
        self.truncate(session, kept)
        self.make_room(len(prompt) - kept)
        return kept

    def resume(self, session: Session, spare: int) -> bool:
        """Give a parked session a sequence and its cells back; return whether there was room."""
        if not self._could_free(session, len(session.items) + spare):
            return False
        self._enter(session, len(session.items))
        return True

    def park(self, session: Session) -> None:
        """Take the sequence from a busy session, with a copy in the host's memory regardless of the budget."""
        self._leave(session, copy=True)

    def make_room(self, n_cells: int) -> bool:
        """Evict idle sessions, the least recently used first, until `n_cells` are free; return whether they are."""
        while self.n_cells + n_cells > self._decoder.n_ctx:
            if not self._evict_oldest():
                return False
        return True

    def truncate(self, session: Session, position: int) -> None:
        """Forget the items of `session` from `position` on."""
        if session.seq is not None and position < len(session.items):
            self._decoder.truncate(session.seq, position)
        del session.items[position:]

    def _enter(self, session: Session, n_cells: int) -> None:
        """Give a session a sequence, and put back its copy."""
        session.last_used = next(self._clock)
        self.make_room(n_cells)
        if session.seq is not None:
            return
        while (seq := self._free_sequence()) is None:
            evicted = self._evict_oldest()
            assert evicted, "_could_free counted a sequence that can be freed"
        if session.copy is not None:
            self._decoder.restore(seq, session.copy)
            session.copy = None
        session.seq = seq

    def _could_free(self, session: Session, n_cells: int) -> bool:
        """Return whether `n_cells` and a sequence for `session` are free or held by idle sessions."""
        others = [other for other in self._sessions if other is not session and other.seq is not None and other.busy]
        held = len(session.items) if session.seq is not None else 0
        taken = held + sum(len(other.items) for other in others)
        return taken + n_cells <= self._decoder.n_ctx and len(others) < self._decoder.n_seq_max

    def _free_sequence(self) -> int | None:
        taken = {session.seq for session in self._sessions}
        return next((seq for seq in range(self._decoder.n_seq_max) if seq not in taken), None)

    def _evict_oldest(self) -> bool:
        idle = [session for session in self._sessions if session.seq is not None and not session.busy]
        if not idle:
            return False
        oldest = min(idle, key=lambda session: session.last_used)
        self._leave(oldest, copy=len(oldest.items) >= _LEAST_PARKED and self.parked_bytes > 0)
        self._keep_budget()
        return True

    def _leave(self, session: Session, *, copy: bool) -> None:
        assert session.seq is not None, "only a session with a sequence can leave it"
        if copy:
            session.copy = self._decoder.save(session.seq)
            self._decoder.truncate(session.seq, 0)
        else:
            self.truncate(session, 0)
        session.seq = None

    def _keep_budget(self) -> None:
        parked = [session for session in self._sessions if session.copy is not None and not session.busy]
        parked.sort(key=lambda session: session.last_used)
        total = sum(len(session.copy or b"") for session in parked)
        for session in parked:
            if total <= self.parked_bytes:
                return
            total -= len(session.copy or b"")
            self._drop_copy(session)

    def _drop_copy(self, session: Session) -> None:
        session.copy = None
        session.items.clear()


def common_prefix(held: Sequence[Item], wanted: Sequence[Item]) -> int:
    """Return how many items two lists have in common from their beginning on."""
    pairs = zip(held, wanted, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(held), len(wanted)))
