"""Generation: a prompt of tokens and images in, events out. The engine never sees a message."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.engine.embeddings import EmbeddingCache
from bimedix_edge.engine.generation import Request
from bimedix_edge.engine.image_cache import ImageCache
from bimedix_edge.engine.reader import read_answer
from bimedix_edge.engine.scheduler import Scheduler
from bimedix_edge.engine.sessions import PARKED_BYTES, ImageRow, Item, PromptImage, Session, SessionTable
from bimedix_edge.errors import PromptError
from bimedix_edge.events import Cancel, Event
from bimedix_edge.imaging.picture import Picture
from bimedix_edge.imaging.preprocess import square
from bimedix_edge.prompt import END_OF_TURN, ImageSlot, Segment, Special, Text
from bimedix_edge.sampling import Sampling
from bimedix_edge.vision.encoder import Stop, Stopped, VisionEncoder, embedding_key

__all__ = ["Engine"]

# how long a stopped encoding waits at most for the one before it
_POLL_S = 0.05
_END_TOKENS = (END_OF_TURN, "<|end_of_text|>")


class Engine:
    """Runs prompts on one decoder and one vision encoder; safe to use from several threads.

    Args:
        decoder: owned by the engine from now on.
        vision: likewise.
        embeddings: where image embeddings are kept in memory for reuse.
        image_cache: where they are kept on the disk; None is nowhere.
        overlap: whether an image is encoded while what stands before it in the prompt is read. By default where the
            encoder has a device of its own; on the CPU both want the same cores, and next to nothing is gained.
        n_parallel: answers that are made together, at most one a sequence of the decoder; more wait.
        parked_bytes: most bytes of host memory for what conversations had in the KV cache, before it was needed.
    """

    def __init__(
        self,
        decoder: Decoder,
        vision: VisionEncoder,
        embeddings: EmbeddingCache | None = None,
        *,
        image_cache: ImageCache | None = None,
        overlap: bool | None = None,
        n_parallel: int | None = None,
        parked_bytes: int = PARKED_BYTES,
    ) -> None:
        self.decoder = decoder
        self.vision = vision
        self.embeddings = embeddings or EmbeddingCache()
        self.image_cache = image_cache
        self.overlap = vision.device != "cpu" if overlap is None else overlap
        self._specials: dict[str, int] = {}
        self._encoding = threading.Lock()
        self.sessions = SessionTable(decoder, parked_bytes)
        ends = frozenset(self._special(name) for name in _END_TOKENS)
        n_parallel = min(n_parallel or decoder.n_seq_max, decoder.n_seq_max, decoder.n_batch)
        self._scheduler = Scheduler(
            decoder, self.sessions, ends, n_parallel, lambda: self.overlap, shared_cores=vision.device == "cpu"
        )

    def session(self) -> Session:
        """Return a new, empty session; give it back with `release`."""
        return self.sessions.open()

    def release(self, session: Session) -> None:
        """Forget a session and free its part of the KV cache; an answer that is being written in it ends."""
        self._scheduler.between_steps(lambda: self.sessions.close(session))

    def prompt_image(self, picture: Picture, scope: str = "") -> PromptImage:
        """Return a picture as the model will see it, with its key; nothing is encoded yet.

        Args:
            picture: the picture.
            scope: part of the key: what is computed about a picture is not reused in another scope.
        """
        key = embedding_key(picture.pixels, self.vision.preprocessing, f"{scope}{self.vision.identity}")
        seen = square(picture.pixels, self.vision.preprocessing)
        return PromptImage(key, seen, picture.sha256, picture.width_px, picture.height_px)

    def items(self, segments: Sequence[Segment], images: Sequence[PromptImage] = ()) -> list[Item]:
        """Return segments as items, one a position, each text tokenized by itself.

        Args:
            segments: see `prompt`.
            images: what the indices of the image slots refer to.

        Raises:
            UsageError: the engine is closed.
        """
        self._scheduler.check_open()
        items: list[Item] = []
        for segment in segments:
            if isinstance(segment, Special):
                items.append(self._special(segment.name))
            elif isinstance(segment, Text):
                items += self.decoder.tokenize(segment.text)
            elif isinstance(segment, ImageSlot):
                items += [ImageRow(images[segment.index], row) for row in range(self.vision.spec.n_tokens)]
        return items

    def generate(
        self,
        session: Session,
        prompt: Sequence[Item],
        sampling: Sampling,
        *,
        max_tokens: int,
        cancel: Cancel | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int | None = None,
    ) -> Generator[Event, None, None]:
        """Read a prompt and write an answer, together with those of others; it begins when it is first read from.

        Args:
            session: whose part of the KV cache is reused and extended.
            prompt: all of it, from the first token on.
            sampling: how tokens are chosen.
            max_tokens: most tokens of the answer, 1 or more.
            cancel: stops writing at the next token, and reading at the next operation, or, while others' answers are
                made, step.
            stop: texts that end the answer and are not part of it; none of them empty.
            top_logprobs: how many of the most likely tokens are told with each; None is no probabilities.

        Yields:
            `Encode` before and after each image that is encoded, `Prefill` as the prompt is read, `Token` for each
            token, and one `Done`.

        Raises:
            PromptError: the prompt does not fit; the message says by how many tokens.
            UsageError: the session is writing another answer, or was closed.
            DecoderError, VisionError: an engine below failed.
        """
        # one cell stays for the first token of the answer
        if (excess := len(prompt) + 1 - self.decoder.n_ctx) > 0:
            raise PromptError(
                f"Expected a prompt of at most {self.decoder.n_ctx - 1} tokens, but it has {len(prompt)}, {excess} too "
                "many; shorten the question, start a new conversation, or choose a larger --ctx-size.",
                n_tokens=len(prompt),
                n_ctx=self.decoder.n_ctx,
            )
        request = Request(session, prompt, sampling, max_tokens, cancel or Cancel(), stop, top_logprobs)
        return read_answer(request, self, self._scheduler)

    def known_embeds(self, image: PromptImage) -> NDArray[np.float32] | None:
        """Return an image's embeddings, float32 (n_tokens, n_embd), if they are in memory or on the disk."""
        embeds = self.embeddings.get(image.key)
        if embeds is None and self.image_cache is not None:
            embeds = self.image_cache.get(image.key, (self.vision.spec.n_tokens, self.vision.spec.n_embd))
            if embeds is not None:
                self.embeddings.put(image.key, embeds)
        return embeds

    def encode(self, image: PromptImage, stop: Stop) -> NDArray[np.float32]:
        """Return an image's embeddings, float32 (n_tokens, n_embd), and keep them in memory.

        Images are encoded one after the other, since one takes all cores.

        Raises:
            Stopped: it was stopped.
            VisionError: the encoder failed.
        """
        while not self._encoding.acquire(timeout=_POLL_S):
            if stop.stopped:
                raise Stopped
        try:
            # another answer may have been about the same image
            if (embeds := self.embeddings.get(image.key)) is None:
                (embeds,) = self.vision.encode([image.seen], stop)
                self.embeddings.put(image.key, embeds)
            return embeds
        finally:
            self._encoding.release()

    def keep(self, image: PromptImage, embeds: NDArray[np.float32]) -> None:
        """Keep an image's embeddings on the disk, if there is a cache."""
        if self.image_cache is not None:
            self.image_cache.put(image.key, embeds)

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        self._scheduler.close()
        self.sessions.close_all()
        self.decoder.close()

    def _special(self, name: str) -> int:
        if name not in self._specials:
            self._specials[name] = self.decoder.special(name)
        return self._specials[name]
