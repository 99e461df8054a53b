"""Generation: a prompt of tokens and images in, events out. The engine never sees a message."""

from __future__ import annotations

import codecs
import collections
import functools
import itertools
import threading
import time
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.decoder import Aborted, Decoder, Sampler
from bimedix_edge.embeddings import EmbeddingCache
from bimedix_edge.errors import PromptError
from bimedix_edge.events import Cancel, Done, Encode, Event, ImageUse, Prefill, StopReason, Timings, Token, Usage
from bimedix_edge.image_cache import ImageCache
from bimedix_edge.imaging.picture import Picture
from bimedix_edge.imaging.preprocess import square
from bimedix_edge.lookahead import Lookahead
from bimedix_edge.prompt import END_OF_TURN, ImageSlot, Segment, Special, Text
from bimedix_edge.sampling import Sampling
from bimedix_edge.sessions import ImageRow, Item, PromptImage, Session, SessionTable
from bimedix_edge.vision import Stop, VisionEncoder, embedding_key

__all__ = ["Engine"]

# positions read at once: enough for full speed, few enough that progress is seen
PREFILL_STEP = 128
_PENALTY_PROMPT_TOKENS = 64
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
    """

    def __init__(
        self,
        decoder: Decoder,
        vision: VisionEncoder,
        embeddings: EmbeddingCache | None = None,
        *,
        image_cache: ImageCache | None = None,
        overlap: bool | None = None,
    ) -> None:
        self.decoder = decoder
        self.vision = vision
        self.embeddings = embeddings or EmbeddingCache()
        self.image_cache = image_cache
        self.overlap = vision.device != "cpu" if overlap is None else overlap
        # one context computes one step at a time; held for a step, not for an answer, so that answers interleave
        self.lock = threading.RLock()
        self.sessions = SessionTable(decoder)
        self._specials: dict[str, int] = {}
        self.end_tokens = frozenset(self._special(name) for name in _END_TOKENS)

    def session(self) -> Session:
        """Return a new, empty session; give it back with `release`."""
        with self.lock:
            return self.sessions.open()

    def release(self, session: Session) -> None:
        """Forget a session and free its part of the KV cache."""
        with self.lock:
            self.sessions.close(session)

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
        """
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
    ) -> Generator[Event, None, None]:
        """Read a prompt and write an answer.

        Args:
            session: whose part of the KV cache is reused and extended.
            prompt: all of it, from the first token on.
            sampling: how tokens are chosen.
            max_tokens: most tokens of the answer, 1 or more.
            cancel: stops writing at the next token, and reading at the next operation.

        Yields:
            `Encode` before and after each image that is encoded, `Prefill` as the prompt is read, `Token` for each
            token, and one `Done`.

        Raises:
            PromptError: the prompt does not fit; the message says by how many tokens.
            UsageError: the session is writing another answer.
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
        return _Run(self, session, prompt, sampling, max_tokens, cancel or Cancel()).events()

    def known_embeds(self, image: PromptImage) -> NDArray[np.float32] | None:
        """Return an image's embeddings, float32 (n_tokens, n_embd), if they are in memory or on the disk."""
        embeds = self.embeddings.get(image.key)
        if embeds is None and self.image_cache is not None:
            embeds = self.image_cache.get(image.key, (self.vision.spec.n_tokens, self.vision.spec.n_embd))
            if embeds is not None:
                self.embeddings.put(image.key, embeds)
        return embeds

    def encode(self, image: PromptImage, stop: Stop) -> NDArray[np.float32]:
        """Return an image's embeddings, float32 (n_tokens, n_embd), by encoding it, and keep them in memory."""
        (embeds,) = self.vision.encode([image.seen], stop)
        self.embeddings.put(image.key, embeds)
        return embeds

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        with self.lock:
            self.decoder.close()

    def _special(self, name: str) -> int:
        if name not in self._specials:
            self._specials[name] = self.decoder.special(name)
        return self._specials[name]


class _Run:
    """The making of one answer."""

    def __init__(
        self,
        engine: Engine,
        session: Session,
        prompt: Sequence[Item],
        sampling: Sampling,
        max_tokens: int,
        cancel: Cancel,
    ) -> None:
        self._engine = engine
        self._session = session
        self._prompt = prompt
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._cancel = cancel
        self._n_reused = 0
        self._images: list[ImageUse] = []
        self._answer: list[int] = []
        self._text = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._start_s = time.perf_counter()
        self._first_token_s: float | None = None
        self._encode_s = 0.0
        self._prefill_s = 0.0

    def events(self) -> Generator[Event, None, None]:
        """Yield what `Engine.generate` promises."""
        sampler = self._engine.decoder.sampler(self._sampling)
        try:
            with self._engine.lock:
                self._n_reused = self._engine.sessions.begin(self._session, self._prompt)
        except BaseException:
            sampler.close()
            raise
        try:
            sampler.accept(item for item in self._prompt[-_PENALTY_PROMPT_TOKENS:] if isinstance(item, int))
            token = yield from self._read(sampler)
            reason = yield from self._write(sampler, token)
        except Aborted:
            reason = "cancelled"
        finally:
            self._session.busy = False
            sampler.close()
        yield self._done(reason)

    def _read(self, sampler: Sampler) -> Generator[Event, None, int]:
        """Evaluate what of the prompt is not in the KV cache; return the first token of the answer."""
        n_known = len(_images(self._prompt[: self._n_reused]))
        self._images = [
            ImageUse(image.sha256, image.width_px, image.height_px, cached=index < n_known)
            for index, image in enumerate(_images(self._prompt))
        ]
        with Lookahead(self._should_stop, Aborted) as lookahead:
            return (yield from self._read_steps(sampler, lookahead))

    def _read_steps(self, sampler: Sampler, lookahead: Lookahead) -> Generator[Event, None, int]:
        embeds: NDArray[np.float32] | None = None
        token = None
        to_come = collections.deque(_images_from(self._prompt, self._n_reused))
        self._look_ahead(to_come, lookahead)
        for step in _steps(self._prompt, self._n_reused):
            if self._should_stop():
                raise Aborted
            if isinstance(step[0], ImageRow) and (embeds is None or step[0].row == 0):
                embeds = yield from self._embeds(to_come.popleft(), lookahead)
                self._look_ahead(to_come, lookahead)
            start_s = time.perf_counter()
            token = self._evaluate(step, embeds, sampler)
            self._prefill_s += time.perf_counter() - start_s
            yield Prefill(len(self._session.items), len(self._prompt), self._n_reused)
        assert token is not None, "the last step of a prompt always samples"
        return token

    def _look_ahead(self, to_come: Sequence[PromptImage], lookahead: Lookahead) -> None:
        """Begin to encode the next image, if that is to happen while what stands before it is read."""
        if self._engine.overlap and to_come and self._engine.known_embeds(to_come[0]) is None:
            self._begin(to_come[0], lookahead)

    def _begin(self, image: PromptImage, lookahead: Lookahead) -> None:
        lookahead.begin(image.key, functools.partial(self._engine.encode, image))

    def _embeds(self, image: PromptImage, lookahead: Lookahead) -> Generator[Event, None, NDArray[np.float32]]:
        """Return an image's embeddings, with events if they must be computed."""
        # the images before this one are in the KV cache by now
        index = len(_images(self._session.items))
        start_s = time.perf_counter()
        embeds = None if lookahead.begun(image.key) else self._engine.known_embeds(image)
        self._images[index] = ImageUse(image.sha256, image.width_px, image.height_px, cached=embeds is not None)
        if embeds is not None:
            self._encode_s += time.perf_counter() - start_s
            return embeds
        yield Encode(index, len(self._images), done=False)
        start_s = time.perf_counter()
        self._begin(image, lookahead)
        embeds = lookahead.wait(image.key)
        if (cache := self._engine.image_cache) is not None:
            lookahead.later(functools.partial(cache.put, image.key, embeds))
        self._encode_s += time.perf_counter() - start_s
        yield Encode(index, len(self._images), done=True)
        return embeds

    def _evaluate(self, step: Sequence[Item], embeds: NDArray[np.float32] | None, sampler: Sampler) -> int | None:
        """Evaluate one step; at the end of the prompt and after it, return the token that follows."""
        decoder, held = self._engine.decoder, self._session.items
        seq = self._session.seq
        assert seq is not None, "a busy session is never evicted"
        with self._engine.lock:
            samples = len(held) + len(step) >= len(self._prompt)
            if isinstance(step[0], ImageRow):
                assert embeds is not None, "the step before encoded the image"
                rows = embeds[step[0].row : step[0].row + len(step)]
                decoder.evaluate_embeds(seq, len(held), rows, self._should_stop)
            else:
                tokens = [item for item in step if isinstance(item, int)]
                decoder.evaluate_tokens(seq, len(held), tokens, self._should_stop, want_logits=samples)
            held += step
            # sampled under the same lock: the logits are those of the context's last evaluation, whosever it was
            return decoder.sample(sampler) if samples else None

    def _should_stop(self) -> bool:
        return self._cancel.cancelled

    def _write(self, sampler: Sampler, token: int | None) -> Generator[Event, None, StopReason]:
        """Yield tokens until something ends the answer; return what."""
        while True:
            if token is None or token in self._engine.end_tokens:
                return "end"
            if self._first_token_s is None:
                self._first_token_s = time.perf_counter()
            self._answer.append(token)
            text = self._utf8.decode(self._engine.decoder.piece(token))
            self._text += text
            yield Token(token, text)
            if len(self._answer) == self._max_tokens:
                return "max_tokens"
            with self._engine.lock:
                if not self._engine.sessions.make_room(1):
                    return "context"
            token = self._evaluate([token], None, sampler)

    def _done(self, reason: StopReason) -> Done:
        self._text += self._utf8.decode(b"", final=True)
        first_s = self._first_token_s
        timings = Timings(
            encode=self._encode_s * 1e3,
            prefill=self._prefill_s * 1e3,
            first_token=0.0 if first_s is None else (first_s - self._start_s) * 1e3,
            decode=0.0 if first_s is None else (time.perf_counter() - first_s) * 1e3,
        )
        usage = Usage(len(self._prompt), self._n_reused, len(self._answer))
        return Done(self._text, tuple(self._answer), reason, usage, tuple(self._images), timings)


def _images(items: Sequence[Item]) -> list[PromptImage]:
    return [item.image for item in items if isinstance(item, ImageRow) and item.row == 0]


def _images_from(prompt: Sequence[Item], start: int) -> Iterator[PromptImage]:
    """Yield the images of which rows stand at `start` or after it, the first one perhaps not from its first row on."""
    for position, item in enumerate(prompt[start:], start):
        if isinstance(item, ImageRow) and (item.row == 0 or position == start):
            yield item.image


def _steps(prompt: Sequence[Item], start: int) -> Iterator[list[Item]]:
    """Cut a prompt from `start` on into steps that are all tokens or all rows of one image."""

    def kind(item: Item) -> PromptImage | None:
        return item.image if isinstance(item, ImageRow) else None

    for _, group in itertools.groupby(prompt[start:], kind):
        run = list(group)
        for offset in range(0, len(run), PREFILL_STEP):
            yield run[offset : offset + PREFILL_STEP]
