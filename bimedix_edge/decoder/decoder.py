"""llama.cpp's model and context through llama-cpp-python's low-level binding.

One `Decoder` is one model and one context with a key-value (KV) cache that its sequences share. It evaluates a run of
tokens or a run of embeddings at given positions of a sequence, and samples from the logits of the last one. What the
positions mean, and which of them may be reused, is the engine's business.

The binding's high-level class is not used: it reuses KV by token-id prefix, and image positions have no token, so two
images could match.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.decoder.batches import BatchBuffers
from bimedix_edge.decoder.kernels import AUTO
from bimedix_edge.decoder.llama import (
    PINNED_VERSION,
    device_list,
    forget_errors,
    ggml,
    last_error,
    llama_cpp,
    open_kernels,
    repacks,
    start,
)
from bimedix_edge.decoder.placement import Placement
from bimedix_edge.decoder.sampler import Sampler, logits_of
from bimedix_edge.decoder.token_rows import TokenRows, matrix_types
from bimedix_edge.errors import DecoderError, DeviceError, HardwareError
from bimedix_edge.prompt import END_OF_TURN
from bimedix_edge.sampling import Sampling

if TYPE_CHECKING:
    from bimedix_edge.decoder.constraint import Vocabulary

__all__ = ["Aborted", "Decoder"]

_ABORTED = 2
_FLASH_ATTENTION_ON = 1
_KV_TYPES = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
# see `Decoder.least_step`: ggml's attention multiplies tiles of 64 from 64 on, and AMX's tiles are worth it from 20 on
_EXACT_TYPES = {llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q8_0, llama_cpp.GGML_TYPE_Q4_K}
_EXACT_TYPES |= {llama_cpp.GGML_TYPE_Q5_K, llama_cpp.GGML_TYPE_Q6_K}
_GGML_LEAST_STEP, _TILES_LEAST_STEP, _KERNELS_LEAST_STEP, _EXACT_STEP = 64, 32, 16, 1


class Aborted(Exception):
    """An evaluation was stopped by its `should_stop`; the sequence is as it was before that run."""


class Decoder:
    """A loaded GGUF model and one context.

    Args:
        path: the GGUF file, already verified against its bundle's manifest.
        spec: the manifest's statement about it.
        n_ctx: KV cells, shared by all sequences.
        n_seq_max: sequences that can be alive at once.
        n_batch: most positions of one evaluation.
        n_threads: threads of the matmuls.
        kernels: which kernels compute them, one of `kernels.CHOICES`.
        placement: what goes to which device, and how keys and values are stored; see `fit`.

    Attributes:
        kernels: what was chosen, and why.
        least_step: steps of so many positions, or more, have to the bit the same results as longer ones.
        exact_beside: whether a step of any length has, whatever else is evaluated in it.

    Raises:
        DecoderError: llama.cpp refuses the file, or it is not what the manifest states.
        HardwareError: the context does not fit into memory, or the kernels cannot be used.
    """

    def __init__(
        self,
        path: Path,
        spec: DecoderSpec,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_batch: int,
        n_threads: int,
        kernels: str = AUTO,
        placement: Placement = Placement(),  # noqa: B008  it is frozen
    ) -> None:
        self._model: llama_cpp.llama_model_p | None = None
        self._context: llama_cpp.llama_context_p | None = None
        self.spec = spec
        self._path = path
        self.n_batch = n_batch
        self.n_seq_max = n_seq_max
        self.placement = placement
        start()
        self.kernels = open_kernels(kernels)
        try:
            self._load(path)
            self._check_spec(path)
            self._create_context(n_ctx, n_seq_max, n_threads)
        except BaseException:
            self.close()
            raise
        self.n_ctx = int(llama_cpp.llama_n_ctx(self._context))
        self.least_step = min(self._least_step(), n_batch)
        self.exact_beside = self.least_step == _EXACT_STEP
        self._buffers = BatchBuffers(n_batch, n_seq_max)

    def _least_step(self) -> int:
        ours = self.kernels.name is not None and not self.placement.devices
        # kernels/attention.cpp says which attention is ours
        if not (ours and self.placement.kv_type == "f16" and self.spec.head_dim in (32, 64, 96, 128)):
            return _GGML_LEAST_STEP
        if self.kernels.name == "avx512vnni" and matrix_types(self._path, ggml) <= _EXACT_TYPES:
            return _EXACT_STEP
        return _TILES_LEAST_STEP if self.kernels.name == "amx" else _KERNELS_LEAST_STEP

    def _load(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = self.placement.n_gpu_layers
        devices = device_list(self.placement.devices)
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
        split = (ctypes.c_float * llama_cpp.llama_max_devices())(*self.placement.split)
        params.tensor_split = split
        # ggml's repacked weights are of no use to our kernels, which read them as they are in the file
        # (and where ggml was built for AMX, "extra" means AMX first)
        params.use_extra_bufts = repacks(kernels=self.kernels.name is not None)
        forget_errors()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model and self.placement.devices:
            raise HardwareError(
                f"Expected room for {self.placement.n_gpu_layers} layers on {', '.join(self.placement.devices)}, but "
                f"llama.cpp could not load them ({last_error()}); choose fewer --gpu-layers or a larger --fit-target."
            )
        if not self._model:
            raise DecoderError(
                f"Expected a GGUF decoder that llama.cpp {PINNED_VERSION} can load, but it refuses {path.name} "
                f"({last_error()}); convert the checkpoint again."
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def _check_spec(self, path: Path) -> None:
        stated = (self.spec.n_layer, self.spec.n_embd, self.spec.n_head, self.spec.n_head_kv, self.spec.n_vocab)
        found = (
            llama_cpp.llama_model_n_layer(self._model),
            llama_cpp.llama_model_n_embd(self._model),
            llama_cpp.llama_model_n_head(self._model),
            llama_cpp.llama_model_n_head_kv(self._model),
            llama_cpp.llama_vocab_n_tokens(self._vocab),
        )
        if stated != found:
            raise DecoderError(
                f"Expected layers, width, heads, KV heads and vocabulary {stated} as the manifest states, but "
                f"{path.name} has {found}; convert the checkpoint again."
            )

    def _create_context(self, n_ctx: int, n_seq_max: int, n_threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = n_seq_max
        # at most one position of a sequence has logits; llama.cpp would keep room for those of a whole batch
        params.n_outputs_max = min(n_seq_max, self.n_batch)
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = n_threads
        params.no_perf = True
        params.type_k = params.type_v = _KV_TYPES[self.placement.kv_type]
        params.offload_kqv = self.placement.kv_on_gpu
        params.op_offload = self.placement.prefill_on_gpu
        # left to itself, llama.cpp does without where it sees our device; and what is not f16 needs it
        params.flash_attn_type = _FLASH_ATTENTION_ON
        forget_errors()
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise HardwareError(
                f"Expected room for a context of {n_ctx} tokens, but llama.cpp could not create it "
                f"({last_error()}); choose a smaller --ctx-size."
            )

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of plain text; special tokens in it are not recognised."""
        return self._tokenize(text, parse_special=False)

    def special(self, name: str) -> int:
        """Return the id of a special token given by its text.

        Raises:
            DecoderError: the vocabulary has no such token.
        """
        tokens = self._tokenize(name, parse_special=True)
        if len(tokens) != 1:
            raise DecoderError(
                f"Expected the special token {name} in the vocabulary, but there is none; convert the checkpoint again."
            )
        return tokens[0]

    def _tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 1  # a byte-level vocabulary never needs more tokens than bytes
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, parse_special)
        if count < 0:
            raise DecoderError(
                f"Expected at most {room} tokens for {len(data)} bytes of text, but llama.cpp wants {-count}; "
                "convert the checkpoint again."
            )
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token, which may be part of a UTF-8 character; special tokens have none."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def evaluate_tokens(
        self,
        seq: int,
        position: int,
        tokens: Sequence[int],
        should_stop: Callable[[], bool] | None = None,
        *,
        want_logits: bool = True,
    ) -> None:
        """Evaluate tokens at `position` and after.

        Args:
            seq: the sequence, 0 to n_seq_max - 1.
            position: of the first token; every position before it must have been evaluated.
            tokens: 1 to n_batch ids.
            should_stop: asked between the operations of the graph.
            want_logits: whether the last token's logits are computed, to sample from.

        Raises:
            Aborted: `should_stop` said yes; the sequence has no more than `position` positions then.
            DecoderError: llama.cpp failed; likewise.
        """
        batch = self._buffers.batch(len(tokens), seq, position, want_logits=want_logits)
        ctypes.memmove(self._buffers.tokens, (llama_cpp.llama_token * len(tokens))(*tokens), 4 * len(tokens))
        batch.token = self._buffers.tokens
        batch.embd = None
        self._decode(batch, {seq: position}, should_stop)

    def evaluate_embeds(
        self,
        seq: int,
        position: int,
        embeds: NDArray[np.float32],
        should_stop: Callable[[], bool] | None = None,
        *,
        want_logits: bool = False,
    ) -> None:
        """Evaluate embeddings in place of tokens.

        Args:
            seq, position, should_stop, want_logits: as for `evaluate_tokens`.
            embeds: float32 (n, n_embd), C-contiguous, n at most n_batch.

        Raises:
            Aborted, DecoderError: as for `evaluate_tokens`.
        """
        if embeds.ndim != 2 or embeds.shape[1] != self.spec.n_embd or embeds.dtype != np.float32:
            raise DecoderError(
                f"Expected float32 embeddings of width {self.spec.n_embd}, but the vision encoder gave "
                f"{embeds.dtype} {embeds.shape}; convert the checkpoint again."
            )
        embeds = np.ascontiguousarray(embeds)
        batch = self._buffers.batch(len(embeds), seq, position, want_logits=want_logits)
        batch.token = None
        batch.embd = embeds.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._decode(batch, {seq: position}, should_stop)

    def token_embeds(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return what llama.cpp looks up for tokens, float32 (n, n_embd): evaluating either gives the same.

        Raises:
            DecoderError: the file is not what was loaded from it.
        """
        return self._token_rows(tokens)

    @functools.cached_property
    def _token_rows(self) -> TokenRows:
        try:
            return TokenRows(self._path, self.spec.n_vocab, self.spec.n_embd, ggml)
        except (OSError, ValueError) as error:
            raise DecoderError(
                f"Expected the decoder's file as it was when it was loaded, but it changed ({error}); open it again."
            ) from error

    def evaluate_each(
        self,
        seqs: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Evaluate one token of each of some sequences in one pass; each has logits, known by its index.

        Args:
            seqs: all different, 0 to n_seq_max - 1; at most n_batch.
            positions: of the tokens; each sequence must have been evaluated up to its.
            tokens: one a sequence.
            should_stop: as for `evaluate_tokens`.

        Raises:
            Aborted, DecoderError: as for `evaluate_tokens`; every sequence is as it was before then.
        """
        batch = self._buffers.column(seqs, positions)
        self._buffers.tokens[: len(tokens)] = tokens
        batch.token = self._buffers.tokens
        batch.embd = None
        self._decode(batch, dict(zip(seqs, positions, strict=True)), should_stop)

    def evaluate_beside(
        self,
        seqs: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        seq: int,
        position: int,
        piece: Sequence[int] | NDArray[np.float32],
        *,
        want_logits: bool,
    ) -> None:
        """Evaluate one token of each of some sequences and a piece of another one in one pass.

        Args:
            seqs, positions, tokens: as for `evaluate_each`; their logits are known by their index.
            seq, position: of the piece, which is not among those.
            piece: tokens, or embeddings as for `evaluate_embeds`.
            want_logits: whether the logits of its last position are computed; their index is that in the whole step.

        Raises:
            DecoderError: llama.cpp failed; every sequence is as it was before then.
        """
        n = len(seqs)
        batch = self._buffers.columns_and_run(seqs, positions, len(piece), seq, position, want_logits=want_logits)
        if isinstance(piece, np.ndarray):
            embeds = np.concatenate([self.token_embeds(tokens), piece])
            batch.token = None
            batch.embd = embeds.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        else:
            self._buffers.tokens[: n + len(piece)] = [*tokens, *piece]
            batch.token = self._buffers.tokens
            batch.embd = None
        self._decode(batch, {**dict(zip(seqs, positions, strict=True)), seq: position}, None)

    def _decode(
        self, batch: llama_cpp.llama_batch, starts: Mapping[int, int], should_stop: Callable[[], bool] | None
    ) -> None:
        """Evaluate a batch; if that fails, let each sequence end where it started."""
        callback = _abort_callback(should_stop)
        forget_errors()
        llama_cpp.llama_set_abort_callback(self._context, callback, None)
        status = llama_cpp.llama_decode(self._context, batch)
        if status == 0:
            llama_cpp.llama_synchronize(self._context)
            return
        for seq, position in starts.items():
            self.truncate(seq, position)
        if status == _ABORTED:
            raise Aborted
        if self.placement.devices:
            raise DeviceError(
                f"Expected {', '.join(self.placement.devices)} to compute, but llama.cpp returned {status} "
                f"({last_error()}): the device failed or is out of memory, and the answer was interrupted; go on with "
                "fewer --gpu-layers, or with 0 on the CPU."
            )
        raise DecoderError(
            f"Expected llama.cpp to evaluate {batch.n_tokens} positions from {max(starts.values())} on, but it "
            f"returned {status} ({last_error()}); start a new conversation, and report this if it happens again."
        )

    def sampler(self, sampling: Sampling) -> Sampler:
        """Return a new sampler for one answer; close it when the answer is complete.

        The first one with a grammar takes about a second longer, to prepare a vocabulary of 128,256 tokens.

        Raises:
            SchemaError: the grammar allows nothing, or is too much work.
        """
        constraint = None if sampling.grammar is None else self._vocabulary.constraint(sampling.grammar)
        return Sampler(sampling, self.spec.n_vocab, constraint)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        # imported here, since most answers are held to no grammar
        from bimedix_edge.decoder.constraint import Vocabulary

        tokens = range(self.spec.n_vocab)
        special = [token for token in tokens if llama_cpp.llama_vocab_is_control(self._vocab, token)]
        return Vocabulary([self.piece(token) for token in tokens], special, self.special(END_OF_TURN), self.tokenize)

    def sample(self, sampler: Sampler, index: int = -1) -> int:
        """Choose the next token from the logits of a position of the last evaluation, by default the last."""
        assert self._context is not None
        return sampler.sample(self._context, index)

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Return a copy of the logits of a position of the last evaluation, float32 (n_vocab,)."""
        assert self._context is not None
        logits: NDArray[np.float32] = logits_of(self._context, index, self.spec.n_vocab).copy()
        return logits

    def truncate(self, seq: int, position: int) -> None:
        """Forget everything of a sequence from `position` on.

        Raises:
            DecoderError: llama.cpp cannot remove it.
        """
        memory = llama_cpp.llama_get_memory(self._context)
        if not llama_cpp.llama_memory_seq_rm(memory, seq, position, -1):
            raise DecoderError(
                f"Expected llama.cpp to forget a sequence from position {position} on, but it cannot; "
                "start a new conversation."
            )

    def save(self, seq: int) -> bytearray:
        """Return a copy of all that a sequence has in the KV cache.

        Raises:
            DecoderError: llama.cpp gives none.
        """
        data = bytearray(llama_cpp.llama_state_seq_get_size(self._context, seq))
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        if (n_bytes := llama_cpp.llama_state_seq_get_data(self._context, buffer, len(data), seq)) != len(data):
            raise DecoderError(
                f"Expected llama.cpp to copy {len(data)} bytes of a conversation, but it copied {n_bytes}; report this."
            )
        return data

    def restore(self, seq: int, data: bytearray) -> None:
        """Give an empty sequence what `save` returned, bit for bit; it needs as many free cells as it had positions.

        Raises:
            DecoderError: llama.cpp does not take it; the sequence is empty then.
        """
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        if not llama_cpp.llama_state_seq_set_data(self._context, buffer, len(data), seq):
            self.truncate(seq, 0)
            raise DecoderError("Expected llama.cpp to take a conversation back, but it does not; report this.")

    def close(self) -> None:
        """Free context and model; calling it again does nothing."""
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _abort_callback(should_stop: Callable[[], bool] | None) -> Any:
    if should_stop is None:
        return llama_cpp.llama_cpp.ggml_abort_callback()
    return llama_cpp.llama_cpp.ggml_abort_callback(lambda _data: should_stop())
