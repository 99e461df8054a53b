"""`Runtime`: an opened model, ready for conversations."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from bimedix_edge.bundle import Bundle, Manifest, open_bundle
from bimedix_edge.chat import Chat
from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.decoder.llama import library_version
from bimedix_edge.decoder.placement import DecoderOptions
from bimedix_edge.engine.embeddings import ImageEmbeddings
from bimedix_edge.engine.engine import Engine
from bimedix_edge.engine.image_cache import ImageCache
from bimedix_edge.errors import BundleError, UsageError
from bimedix_edge.hardware.machine import inspect_machine
from bimedix_edge.planning.plan import plan_model
from bimedix_edge.sampling import Sampling
from bimedix_edge.settings import Settings, load_settings
from bimedix_edge.store import DEMO, Store
from bimedix_edge.vision.encoder import EncoderFile, VisionEncoder

__all__ = ["Runtime"]


class Runtime:
    """A verified bundle, loaded. Made by `Runtime.open`; close it, or use it in a `with` block.

    Attributes:
        directory: Directory of the bundle.
        manifest: Description of the model; `manifest.notice` belongs on every output.
        settings: Settings in force.
        kernels: Kernels of the decoder's matrix products, and why these.
        plan: What goes to which device, and the memory that it takes.
        load_ms: Milliseconds that verifying and loading took.
        engine: Engine of the conversations.
    """

    def __init__(self, bundle: Bundle, settings: Settings, notify: Callable[[str], None] | None = None) -> None:
        start_s = time.perf_counter()
        self._bundle = bundle
        self._notify = notify
        self.directory = bundle.directory
        self.manifest: Manifest = bundle.manifest
        self.settings = settings
        self._n_threads = settings.threads or inspect_machine().n_cores
        vision = VisionEncoder(
            EncoderFile.of(bundle), self._n_threads, device=settings.vision_device, kernels=settings.kernels
        )
        self._load(vision)
        self.load_ms = (time.perf_counter() - start_s) * 1e3

    def _load(self, vision: VisionEncoder) -> None:
        """Plan, and load the decoder."""
        settings = self.settings
        self.plan = plan_model(self.directory, self.manifest, settings, open_vision=vision)
        load = self.plan.load
        options = DecoderOptions(
            n_ctx=load.n_ctx,
            n_seq_max=load.n_seq_max,
            n_batch=load.n_batch,
            n_threads=self._n_threads,
            kernels=settings.kernels,
            placement=self.plan.placement,
        )
        decoder = Decoder(self._bundle.path("decoder"), self.manifest.decoder, options)
        self.kernels = decoder.kernels
        cache_bytes = settings.image_cache_bytes
        image_cache = ImageCache(settings.image_cache_dir, cache_bytes, self._notify) if cache_bytes else None
        self.engine = Engine(decoder, ImageEmbeddings(vision, image_cache), n_parallel=settings.parallel)

    @classmethod
    def open(
        cls,
        model: str | Path | None = None,
        *,
        settings: Settings | None = None,
        progress: Callable[[int], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Runtime:
        """Verify and load a model.

        Args:
            model: A bundle's directory, its name in the store, or None for the settings' model, the only one
                installed, or the demo model.
            settings: Settings; by default those of the environment and the settings file.
            progress: Called with the number of bytes of each block hashed.
            notify: Called with a sentence when the image cache on the disk is damaged or fails, which costs no answer;
                perhaps during an answer, and from another thread.

        Raises:
            BundleError: The bundle is damaged, incomplete, or not converted yet.
            UsageError: There is no model of that name, or the settings are wrong.
            HardwareError: The model does not fit into memory, or the machine has no GPU as the settings ask for.
            DecoderError, VisionError: llama.cpp or ONNX Runtime refuses it.
        """
        settings = settings or load_settings()
        store = Store(settings.store_dir, settings.cache_dir)
        wanted = model or settings.model
        directory = store.find(wanted) if wanted else store.default()
        if store.is_demo(directory) and not directory.is_dir():
            raise BundleError(
                f"No converted model is installed. Run `bimedix-edge convert --{DEMO}` once, or convert a checkpoint."
            )
        start_s = time.perf_counter()
        bundle = open_bundle(directory, progress)
        verify_ms = (time.perf_counter() - start_s) * 1e3
        runtime = cls(bundle, settings, notify)
        runtime.load_ms += verify_ms
        return runtime

    def chat(self, *, sampling: Sampling | None = None, max_tokens: int | None = None) -> Chat:
        """Return a new conversation.

        Args:
            sampling: How tokens are chosen; by default the settings', with a fresh seed if they have none.
            max_tokens: Most tokens of an answer; by default the settings'.
        """
        return Chat(
            self.engine,
            self.manifest.prompt,
            sampling or self.sampling(),
            max_tokens or self.settings.max_tokens,
        )

    def sampling(self) -> Sampling:
        """Return the settings' sampling; if they set no seed, each call draws another one."""
        settings = self.settings
        return Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            repeat_penalty=settings.repeat_penalty,
            seed=secrets.randbits(32) if settings.seed is None else settings.seed,
        )

    @property
    def n_ctx(self) -> int:
        """Return how many cells the KV cache has, shared by all conversations."""
        return self.engine.decoder.n_ctx

    @property
    def n_cells_used(self) -> int:
        """Return how many cells of the KV cache hold a position now."""
        return self.engine.sessions.n_cells

    @property
    def identity(self) -> tuple[str, ...]:
        """Return what answers depend on besides the prompt and the options: files, engines, kernels, preprocessing."""
        hashes = sorted(entry.sha256 for entry in self.manifest.files.values())
        engines = (library_version(), self.kernels.name or "none", self.engine.vision.identity)
        return (*hashes, *engines, self.manifest.preprocessing.sha256)

    @property
    def vision_fault(self) -> str | None:
        """Return why the image encoder computes on the CPU though there is a GPU for it; None without such a fault."""
        return self.engine.vision.fault

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of plain text; special tokens in it are not recognised."""
        return self.engine.decoder.tokenize(text)

    def detokenize(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; special tokens have none, and bytes that are not UTF-8 become U+FFFD.

        Raises:
            UsageError: One of them is not a token of the vocabulary.
        """
        tokens, n_vocab = list(tokens), self.manifest.decoder.n_vocab
        for token in tokens:
            if type(token) is not int or not 0 <= token < n_vocab:
                raise UsageError(
                    f"{str(token)[:40]} is not a token of this model. Send integers from 0 to {n_vocab - 1}."
                )
        return b"".join(map(self.engine.decoder.piece, tokens)).decode("utf-8", "replace")

    def leave_gpu(self, chat: Chat) -> None:
        """Load the decoder again for the CPU alone, after a device has failed, and let a conversation go on there.

        Nothing calls this by itself: an answer from the CPU takes longer, so the user has to agree.

        Args:
            chat: Conversation of this runtime; all others end.

        Raises:
            HardwareError: The model does not fit into the machine's memory.
        """
        # as long a context as before, so that the conversation fits
        self.settings = replace(self.settings, gpu_layers=0, ctx_size=self.plan.load.n_ctx)
        self.engine.close()
        self._load(self.engine.vision)
        chat.move(self.engine)

    def close(self) -> None:
        """Free the model; its conversations cannot be used afterwards."""
        self.engine.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
