"""The images of one prompt: when each is encoded, and what of the prompt can be evaluated before that."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.batches import Run
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.lookahead import Lookahead
from bimedix_edge.engine.sessions import ImageRow, Item, PromptImage
from bimedix_edge.events import Encode, ImageUse

__all__ = ["PromptImages"]

# an image this many positions ahead is encoded before the text: a chunk of few positions costs as much as one of many
_WAITING_TEXT = 64


class _Place(NamedTuple):
    """An image of a prompt and its positions there, `end` excluded."""

    image: PromptImage
    start: int
    end: int


class PromptImages:
    """The images of one prompt; the scheduler's thread owns it once its answer was submitted.

    Args:
        prompt: The whole prompt.
        embeddings: Source of the embeddings.
        report: Receives an `Encode` before and after each encoding.
        wake: Called from another thread when an image is encoded.

    Attributes:
        lookahead: Threads that encode the images. The reader sets it, and ends them.
        uses: A report about each image, in order; complete when the prompt is evaluated.
        waiting: Whether the prompt can only go on when an image is encoded.
        encode_s: Seconds from the request for an image's embeddings to their arrival, of all images together.
    """

    def __init__(
        self,
        prompt: Sequence[Item],
        embeddings: ImageEmbeddings,
        report: Callable[[Encode], None],
        wake: Callable[[], None],
    ) -> None:
        self.lookahead: Lookahead | None = None
        self.uses: list[ImageUse] = []
        self.waiting = False
        self.encode_s = 0.0
        self._prompt = prompt
        self._source = embeddings
        self._report = report
        self._wake = wake
        self._places = _places(prompt)
        # by the image's index in the prompt: those that are evaluated now or next
        self._embeds: dict[int, NDArray[np.float32]] = {}
        self._encoding_start_s: dict[int, float] = {}

    def begin(self, n_reused: int) -> None:
        """Note that `n_reused` positions of the prompt are in the KV cache already."""
        self.uses = [_use(place.image, cached=place.start < n_reused) for place in self._places]

    def look_ahead(self, at: int) -> None:
        """Begin to encode the next image after position `at`, while something else is evaluated."""
        for index, place in enumerate(self._places):
            if place.end > at and index not in self._embeds:
                if not self._threads.begun(place.image.key) and self._source.known(place.image) is None:
                    self._encode(place.image)
                return

    def ready_end(self, at: int, most: int) -> int:
        """Return the end of what can be evaluated from position `at` on, with all embeddings at hand.

        Args:
            at: First position that is not evaluated yet.
            most: Most positions of interest; images after these are not looked at.

        Returns:
            `at` while an image has to be encoded first; a little text before it waits, too.

        Raises:
            VisionError: An encoding failed.
        """
        self.waiting = False
        for index, place in enumerate(self._places):
            if place.end <= at:
                continue
            if place.start >= at + most + _WAITING_TEXT:
                break
            wanted = place.start < at + _WAITING_TEXT
            if not self._has_embeds(index, begin=wanted):
                self.waiting = wanted
                return at if wanted else place.start
        return len(self._prompt)

    def runs(self, seq: int, start: int, end: int) -> list[Run]:
        """Return positions of the prompt as runs of text and of embeddings, the prompt's last one with logits.

        Args:
            seq: Sequence of the prompt.
            start, end: Positions, `end` excluded; at most up to `ready_end`.
        """
        runs: list[Run] = []
        for index, place in enumerate(self._places):
            if start < place.end and place.start < end:
                if start < place.start:
                    runs.append(self._text(seq, start, place.start))
                    start = place.start
                stop = min(end, place.end)
                rows = self._embeds[index][start - place.start : stop - place.start]
                runs.append(Run(seq, start, rows, wants_logits=stop == len(self._prompt)))
                start = stop
        if start < end:
            runs.append(self._text(seq, start, end))
        return runs

    def drop_before(self, at: int) -> None:
        """Drop the embeddings of images that are evaluated up to position `at`."""
        self._embeds = {index: rows for index, rows in self._embeds.items() if self._places[index].end > at}

    @property
    def _threads(self) -> Lookahead:
        assert self.lookahead is not None, "the reader made it"
        return self.lookahead

    def _text(self, seq: int, start: int, end: int) -> Run:
        tokens = [item for item in self._prompt[start:end] if isinstance(item, int)]
        return Run(seq, start, tokens, wants_logits=end == len(self._prompt))

    def _has_embeds(self, index: int, *, begin: bool) -> bool:
        """Return whether an image's embeddings are at hand; if not, begin to encode it if `begin` is set."""
        if index in self._embeds:
            return True
        image, start_s = self._places[index].image, time.perf_counter()
        if index not in self._encoding_start_s:
            if not self._threads.begun(image.key):
                embeds = self._source.known(image)
                if embeds is not None:
                    self.uses[index] = _use(image, cached=True)
                    self.encode_s += time.perf_counter() - start_s
                    self._embeds[index] = embeds
                    return True
                if not begin:
                    return False
            self._encoding_start_s[index] = start_s
            self._report(Encode(index, len(self._places), done=False))
            self._encode(image)
        if not self._threads.ready(image.key):
            return False
        embeds = self._embeds[index] = self._threads.wait(image.key)
        self._threads.later(functools.partial(self._source.keep, image, embeds))
        self.encode_s += time.perf_counter() - self._encoding_start_s[index]
        self._report(Encode(index, len(self._places), done=True))
        return True

    def _encode(self, image: PromptImage) -> None:
        self._threads.begin(image.key, functools.partial(self._source.encode, image), self._wake)


def _places(prompt: Sequence[Item]) -> list[_Place]:
    """Return the images of a prompt in order; of two equal ones side by side, each is one."""
    starts = [at for at, item in enumerate(prompt) if isinstance(item, ImageRow) and item.row == 0]
    places = []
    for start, limit in itertools.pairwise((*starts, len(prompt))):
        first = prompt[start]
        assert isinstance(first, ImageRow)
        end = next((at for at in range(start, limit) if not isinstance(prompt[at], ImageRow)), limit)
        places.append(_Place(first.image, start, end))
    return places


def _use(image: PromptImage, *, cached: bool) -> ImageUse:
    return ImageUse(image.sha256, image.width_px, image.height_px, cached=cached)
