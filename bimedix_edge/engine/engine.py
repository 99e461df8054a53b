"""Generation: a prompt of tokens and images in, events out. The engine never sees a message."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.reader import read_answer
from bimedix_edge.engine.request import EngineRequest, GenerationOptions
from bimedix_edge.engine.scheduler import Scheduler
from bimedix_edge.engine.sessions import PARKED_BYTES, ImageRow, Item, PromptImage, Session, SessionTable
from bimedix_edge.errors import PromptError
from bimedix_edge.events import Cancel, Event
from bimedix_edge.imaging.picture import Picture
from bimedix_edge.imaging.preprocess import square
from bimedix_edge.prompt import END_OF_TURN, ImageSlot, Segment, Special, Text
from bimedix_edge.vision.encoder import embedding_key

__all__ = ["Engine"]

_END_TOKENS = (END_OF_TURN, "<|end_of_text|>")


class Engine:
    """Runs prompts on one decoder and one vision encoder; safe to use from several threads.

    Args:
        decoder: Decoder of the prompts; the engine closes it.
        embeddings: Embeddings of images, and their encoder.
        n_parallel: Most answers in one batch, at most one for each sequence of the decoder; more wait.
        parked_bytes: Budget of host memory for copies of conversations that left the KV cache.

    Attributes:
        decoder, embeddings: As given.
        vision: Encoder of the images.
        sessions: Sessions of the decoder.
        scheduler: Thread that advances the answers.
    """

    def __init__(
        self,
        decoder: Decoder,
        embeddings: ImageEmbeddings,
        *,
        n_parallel: int | None = None,
        parked_bytes: int = PARKED_BYTES,
    ) -> None:
        self.decoder = decoder
        self.embeddings = embeddings
        self.vision = embeddings.vision
        self._specials: dict[str, int] = {}
        self.sessions = SessionTable(decoder, parked_bytes)
        ends = frozenset(self._special(name) for name in _END_TOKENS)
        n_parallel = min(n_parallel or decoder.n_seq_max, decoder.n_seq_max, decoder.n_batch)
        self.scheduler = Scheduler(
            decoder, self.sessions, ends, n_parallel, shared_cores=embeddings.vision.device == "cpu"
        )

    def session(self) -> Session:
        """Return a new, empty session; give it back with `release`."""
        return self.sessions.open()

    def release(self, session: Session) -> None:
        """Forget a session and free its part of the KV cache; an answer in progress in it ends."""
        self.scheduler.between_steps(lambda: self.sessions.close(session))

    def prompt_image(self, picture: Picture, scope: str = "") -> PromptImage:
        """Return a picture as the model will see it, with its key; nothing is encoded yet.

        Args:
            picture: Decoded picture.
            scope: Part of the key. Embeddings and cells of a picture are not reused in another scope.
        """
        key = embedding_key(picture.pixels, self.vision.preprocessing, f"{scope}{self.vision.identity}")
        seen = square(picture.pixels, self.vision.preprocessing)
        return PromptImage(key, seen, picture.sha256, picture.width_px, picture.height_px)

    def items(self, segments: Sequence[Segment], images: Sequence[PromptImage] = ()) -> list[Item]:
        """Return segments as items, one a position, each text tokenized by itself.

        Args:
            segments: Parts of a prompt; see `prompt`.
            images: Images that the image slots refer to by index.

        Raises:
            UsageError: The engine is closed.
        """
        self.scheduler.check_open()
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
        self, session: Session, prompt: Sequence[Item], options: GenerationOptions, cancel: Cancel | None = None
    ) -> Generator[Event, None, None]:
        """Answer a prompt, in one batch with other answers; work begins when the first event is read.

        Args:
            session: Session whose part of the KV cache is reused and extended.
            prompt: The whole prompt, from its first token on.
            options: How the answer is generated.
            cancel: Stops decoding at the next token. It stops prefill at the next operation of the graph, or at the
                next step while other answers are in progress.

        Yields:
            `Encode` before and after each image that is encoded, `Prefill` after each chunk of the prompt, `Token` for
            each token, and one `Done`.

        Raises:
            PromptError: The prompt does not fit; the message says by how many tokens.
            UsageError: The session has an answer in progress, or was closed.
            DecoderError, VisionError: The decoder or the encoder failed.
        """
        # one cell stays for the first token of the answer
        if (excess := len(prompt) + 1 - self.decoder.n_ctx) > 0:
            raise PromptError(
                f"The prompt does not fit into the context: it has {len(prompt)} tokens, {excess} too many for "
                f"{self.decoder.n_ctx - 1}. Shorten the question, start a new conversation, or choose a larger "
                "context size.",
                n_tokens=len(prompt),
                n_ctx=self.decoder.n_ctx,
            )
        request = EngineRequest(session, prompt, options, cancel or Cancel())
        return read_answer(request, self.embeddings, self.scheduler)

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        self.scheduler.close()
        self.sessions.close_all()
        self.decoder.close()

    def _special(self, name: str) -> int:
        if name not in self._specials:
            self._specials[name] = self.decoder.special(name)
        return self._specials[name]
