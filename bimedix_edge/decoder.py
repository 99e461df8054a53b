"""llama.cpp through llama-cpp-python's low-level binding: the only file that imports it in the runtime.

One `Decoder` is one model and one context with a key-value (KV) cache that its sequences share. It evaluates a run of
tokens or a run of embeddings at given positions of a sequence, and samples from the logits of the last one. What the
positions mean, and which of them may be reused, is the engine's business.

The binding's high-level class is not used: it reuses KV by token-id prefix, and image positions have no token, so two
images could match.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.errors import DecoderError, DeviceError, HardwareError
from bimedix_edge.gpu_advice import build_command, missing_gpu_library
from bimedix_edge.hardware import Backend, ComputeDevice, DeviceKind
from bimedix_edge.kernels import AUTO, Kernels, load_kernels
from bimedix_edge.placement import Placement
from bimedix_edge.prompt import END_OF_TURN
from bimedix_edge.sampling import Sampling
from bimedix_edge.token_rows import TokenRows, matrix_types

if TYPE_CHECKING:
    from bimedix_edge.constraint import Constraint, Vocabulary

# the structs of llama.h are passed by value and change between versions
PINNED_VERSION = "0.3.36"

try:
    import llama_cpp
    from llama_cpp import _ggml as llama_ggml
except (ImportError, OSError, RuntimeError) as error:  # its shared library or one that it needs is missing
    if (cause := missing_gpu_library(str(error))) is not None:
        raise HardwareError(
            f"Expected llama-cpp-python to load, but it was built for a GPU and {cause}; install the driver or the "
            "toolkit that has it, or build it without: "
            f"{build_command(None, f'{platform.system()} {platform.machine()}', PINNED_VERSION)}"
        ) from error
    raise DecoderError(
        f"Expected llama-cpp-python to load, but it fails ({error}); install it again, with a C++ compiler at hand."
    ) from error

__all__ = [
    "PINNED_VERSION",
    "Aborted",
    "Decoder",
    "Sampler",
    "backend_faults",
    "backends",
    "built_for_amx",
    "check_version",
    "compute_devices",
    "library_version",
    "open_kernels",
    "repacks",
    "system_info",
]

_ABORTED = 2
_FLASH_ATTENTION_ON = 1
_KV_TYPES = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
_PENALTY_WINDOW_TOKENS = 64
# see `Decoder.least_step`: ggml's attention multiplies tiles of 64 from 64 on, and AMX's tiles are worth it from 20 on
_EXACT_TYPES = {llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q8_0, llama_cpp.GGML_TYPE_Q4_K}
_EXACT_TYPES |= {llama_cpp.GGML_TYPE_Q5_K, llama_cpp.GGML_TYPE_Q6_K}
_GGML_LEAST_STEP, _TILES_LEAST_STEP, _KERNELS_LEAST_STEP, _EXACT_STEP = 64, 32, 16, 1
_LOG_ERROR = 4
# in the order of ggml's enum ggml_backend_dev_type
_DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accel", "meta")
# llama_token_data of llama.h
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_recent_errors: collections.deque[str] = collections.deque(maxlen=4)


def _remember_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    # the library prints nothing: errors are kept for the message of the exception, the rest is dropped
    if level == _LOG_ERROR:
        _recent_errors.append(text.decode("utf-8", "replace").strip())


# kept for the life of the process, since llama.cpp keeps the pointer
_LOG_CALLBACK = llama_cpp.llama_log_callback(_remember_log)


class Aborted(Exception):
    """An evaluation was stopped by its `should_stop`; the sequence is as it was before that run."""


class Sampler:
    """A chain of llama.cpp's samplers with the state of one answer; made by `Decoder.sampler`.

    Args:
        sampling: how tokens are chosen.
        n_vocab: tokens of the vocabulary.
        constraint: which tokens may come next; None is all of them.
    """

    def __init__(self, sampling: Sampling, n_vocab: int, constraint: Constraint | None = None) -> None:
        self._n_vocab = n_vocab
        self._constraint = constraint
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if not chain:
            raise DecoderError("Expected llama.cpp to create a sampler, but it could not; restart the program.")
        self._chain = chain
        for sampler in _samplers(sampling, n_vocab):
            llama_cpp.llama_sampler_chain_add(chain, sampler)

    def accept(self, tokens: Iterable[int]) -> None:
        """Show tokens of the prompt to the repeat penalty."""
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, context: llama_cpp.llama_context_p, index: int = -1) -> int:
        """Choose a token from the logits of one position of the last evaluation.

        Args:
            context: that evaluated.
            index: of the position in its batch; -1 is the last one whose logits were wanted.

        Raises:
            SchemaError: the grammar became too much work.
        """
        if self._constraint is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context, index))
        logits = _logits(context, index, self._n_vocab)
        token = self._choose(self._constraint.allowed(), logits)
        self._constraint.accept(token)
        return token

    def _choose(self, allowed: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        """Let the chain choose among the allowed tokens alone, which is why it needs no sampler of a grammar."""
        candidates = np.zeros(len(allowed), dtype=_CANDIDATE)
        candidates["id"] = allowed
        candidates["logit"] = logits[allowed]
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)),
            size=len(allowed),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the chain; calling it again does nothing."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None


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
        check_version()
        llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
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
        self._buffers = _Buffers(n_batch, n_seq_max)

    def _least_step(self) -> int:
        ours = self.kernels.name is not None and not self.placement.devices
        # kernels/attention.cpp says which attention is ours
        if not (ours and self.placement.kv_type == "f16" and self.spec.head_dim in (32, 64, 96, 128)):
            return _GGML_LEAST_STEP
        if self.kernels.name == "avx512vnni" and matrix_types(self._path, _ggml) <= _EXACT_TYPES:
            return _EXACT_STEP
        return _TILES_LEAST_STEP if self.kernels.name == "amx" else _KERNELS_LEAST_STEP

    def _load(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = self.placement.n_gpu_layers
        devices = _device_list(self.placement.devices)
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
        split = (ctypes.c_float * llama_cpp.llama_max_devices())(*self.placement.split)
        params.tensor_split = split
        # ggml's repacked weights are of no use to our kernels, which read them as they are in the file
        # (and where ggml was built for AMX, "extra" means AMX first)
        params.use_extra_bufts = repacks(kernels=self.kernels.name is not None)
        _recent_errors.clear()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model and self.placement.devices:
            raise HardwareError(
                f"Expected room for {self.placement.n_gpu_layers} layers on {', '.join(self.placement.devices)}, but "
                f"llama.cpp could not load them ({_last_error()}); choose fewer --gpu-layers or a larger --fit-target."
            )
        if not self._model:
            raise DecoderError(
                f"Expected a GGUF decoder that llama.cpp {PINNED_VERSION} can load, but it refuses {path.name} "
                f"({_last_error()}); convert the checkpoint again."
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
        _recent_errors.clear()
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise HardwareError(
                f"Expected room for a context of {n_ctx} tokens, but llama.cpp could not create it "
                f"({_last_error()}); choose a smaller --ctx-size."
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
            return TokenRows(self._path, self.spec.n_vocab, self.spec.n_embd, _ggml)
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
        _recent_errors.clear()
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
                f"({_last_error()}): the device failed or is out of memory, and the answer was interrupted; go on with "
                "fewer --gpu-layers, or with 0 on the CPU."
            )
        raise DecoderError(
            f"Expected llama.cpp to evaluate {batch.n_tokens} positions from {max(starts.values())} on, but it "
            f"returned {status} ({_last_error()}); start a new conversation, and report this if it happens again."
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
        from bimedix_edge.constraint import Vocabulary

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
        logits: NDArray[np.float32] = _logits(self._context, index, self.spec.n_vocab).copy()
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


class _Buffers:
    """The arrays a llama_batch points to, allocated once."""

    def __init__(self, n_batch: int, n_seq_max: int) -> None:
        self.tokens = (llama_cpp.llama_token * n_batch)()
        self._position = (llama_cpp.llama_pos * n_batch)()
        self._n_seq = (ctypes.c_int32 * n_batch)(*([1] * n_batch))
        self._seq = (llama_cpp.llama_seq_id * 1)()
        pointer = ctypes.POINTER(llama_cpp.llama_seq_id)
        self._seq_of = (pointer * n_batch)(*([ctypes.cast(self._seq, pointer)] * n_batch))
        self._wants_logits = (ctypes.c_int8 * n_batch)()
        self._seqs = (llama_cpp.llama_seq_id * n_seq_max)()
        size = ctypes.sizeof(llama_cpp.llama_seq_id)
        places = [ctypes.addressof(self._seqs) + index * size for index in range(n_seq_max)]
        self._mixed = (pointer * n_batch)()
        self._each_seq = (pointer * n_seq_max)(*(ctypes.cast(place, pointer) for place in places))

    def batch(self, count: int, seq: int, position: int, *, want_logits: bool) -> llama_cpp.llama_batch:
        """Return a batch of `count` positions; its tokens or embeddings are still to be set."""
        if not 1 <= count <= len(self.tokens):
            raise ValueError(f"a batch holds 1 to {len(self.tokens)} positions, not {count}")
        self._seq[0] = seq
        self._position[:count] = list(range(position, position + count))
        ctypes.memset(self._wants_logits, 0, count)
        # llama.cpp computes the output layer for marked positions only
        self._wants_logits[count - 1] = 1 if want_logits else 0
        return self._filled(count, self._seq_of)

    def column(self, seqs: Sequence[int], positions: Sequence[int]) -> llama_cpp.llama_batch:
        """Return a batch of one position of each of some sequences; its tokens are still to be set."""
        count, most = len(seqs), min(len(self.tokens), len(self._seqs))
        if not 1 <= count <= most:
            raise ValueError(f"a batch holds 1 to {most} sequences, not {count}")
        self._seqs[:count] = seqs
        self._position[:count] = positions
        ctypes.memset(self._wants_logits, 1, count)
        return self._filled(count, self._each_seq)

    def columns_and_run(
        self, seqs: Sequence[int], positions: Sequence[int], count: int, seq: int, position: int, *, want_logits: bool
    ) -> llama_cpp.llama_batch:
        """Return a batch of one position of each of some sequences, and behind them `count` of another one."""
        n = len(seqs)
        if not (1 <= n <= len(self._seqs) and count >= 1 and n + count <= len(self.tokens)):
            raise ValueError(f"a batch holds {len(self.tokens)} positions, not {n} and {count}")
        self._seqs[:n] = seqs
        self._seq[0] = seq
        self._position[: n + count] = [*positions, *range(position, position + count)]
        ctypes.memset(self._wants_logits, 1, n)
        for index in range(n, n + count):
            self._wants_logits[index] = 0
        self._wants_logits[n + count - 1] = 1 if want_logits else 0
        self._mixed[:n] = self._each_seq[:n]
        self._mixed[n : n + count] = self._seq_of[:count]
        return self._filled(n + count, self._mixed)

    def _filled(self, count: int, seq_of: Any) -> llama_cpp.llama_batch:
        batch = llama_cpp.llama_batch()
        batch.n_tokens = count
        batch.pos = self._position
        batch.n_seq_id = self._n_seq
        batch.seq_id = seq_of
        batch.logits = self._wants_logits
        return batch


def library_version() -> str:
    """Return the installed version of llama-cpp-python."""
    return importlib.metadata.version("llama-cpp-python")


def open_kernels(choice: str) -> Kernels:
    """Choose the kernels for the decoders that are made from now on.

    Raises:
        HardwareError: certain kernels were asked for, and they cannot be used here.
    """
    backend_faults()
    return load_kernels(choice, library_version(), _register)


def _register(path: Path) -> bool:
    return bool(_ggml("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)(str(path).encode()))


def _ggml(name: str, result: Any, *arguments: Any) -> Any:
    """Return one of ggml's functions with its types."""
    # by way of libllama, where the system searches what a library depends on: the binding opens ggml under its other
    # name, and where a wheel holds a copy instead of a link, that is a second ggml
    library = llama_ggml.libggml if sys.platform == "win32" else llama_cpp.llama_cpp._lib
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def backends() -> tuple[Backend, ...]:
    """Return what llama.cpp was built with, and what was registered with it."""
    backend_faults()
    at = _ggml("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = _ggml("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    n_devices = _ggml("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
    registries = [at(index) for index in range(_ggml("ggml_backend_reg_count", ctypes.c_size_t)())]
    return tuple(Backend(name(registry).decode(), int(n_devices(registry))) for registry in registries)


@functools.cache
def backend_faults() -> tuple[str, ...]:
    """Return what ggml's backends said when they could not start, the first time any of them is asked for."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    _recent_errors.clear()
    _ggml("ggml_backend_reg_count", ctypes.c_size_t)()
    return tuple(_recent_errors)


def compute_devices() -> tuple[ComputeDevice, ...]:
    """Return what ggml can compute on, in its order, with the memory that it states.

    For the CPU it states that all memory of the machine is free.

    Source: `ggml-backend.h` of the pinned version.
    """
    backend_faults()
    at = _ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return tuple(_compute_device(at(index)) for index in range(_ggml("ggml_backend_dev_count", ctypes.c_size_t)()))


def _compute_device(device: int) -> ComputeDevice:
    address, text = ctypes.c_void_p, ctypes.c_char_p
    size = ctypes.POINTER(ctypes.c_size_t)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _ggml("ggml_backend_dev_memory", None, address, size, size)(device, ctypes.byref(free), ctypes.byref(total))
    registry = _ggml("ggml_backend_dev_backend_reg", address, address)(device)
    return ComputeDevice(
        name=_ggml("ggml_backend_dev_name", text, address)(device).decode(),
        description=_ggml("ggml_backend_dev_description", text, address)(device).decode("utf-8", "replace"),
        kind=_DEVICE_KINDS[_ggml("ggml_backend_dev_type", ctypes.c_int, address)(device)],
        backend=_ggml("ggml_backend_reg_name", text, address)(registry).decode(),
        free_bytes=int(free.value),
        total_bytes=int(total.value),
    )


def system_info() -> str:
    """Return llama.cpp's own line about the instruction sets it uses."""
    return str(llama_cpp.llama_print_system_info().decode())


def built_for_amx() -> bool:
    """Tell whether llama.cpp was built for processors with AMX; its products by AMX are never used.

    GCC up to 12 takes `_tile_loadconfig` to read eight of its 64 bytes and drops what was written to the others:
    compiled so, ggml's AMX ends the process. Which compiler built a library cannot be asked.
    """
    return "AMX_INT8 = 1" in system_info()


def repacks(*, kernels: bool) -> bool:
    """Tell whether llama.cpp rearranges weights when it loads them; with our kernels (`kernels`) it does not."""
    return not kernels and not built_for_amx()


def check_version() -> None:
    """Raise DecoderError unless the installed llama-cpp-python is the one whose structures this program knows."""
    if (version := library_version()) != PINNED_VERSION:
        raise DecoderError(
            f"Expected llama-cpp-python {PINNED_VERSION}, whose structures this program knows, but {version} is "
            f"installed; run `pip install llama-cpp-python=={PINNED_VERSION}`."
        )


def _samplers(sampling: Sampling, n_vocab: int) -> list[llama_cpp.llama_sampler_p]:
    chain = []
    if sampling.repeat_penalty != 1.0:
        penalties = (_PENALTY_WINDOW_TOKENS, sampling.repeat_penalty, 0.0, 0.0)
        chain.append(llama_cpp.llama_sampler_init_penalties(n_vocab, *penalties))
    if sampling.temperature == 0.0:
        return [*chain, llama_cpp.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        chain.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        chain.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    chain.append(llama_cpp.llama_sampler_init_temp(sampling.temperature))
    chain.append(llama_cpp.llama_sampler_init_dist(sampling.seed))
    return chain


def _logits(context: llama_cpp.llama_context_p, index: int, n_vocab: int) -> NDArray[np.float32]:
    """Return the logits of a position of the last batch, float32 (n_vocab,), valid until the next evaluation."""
    pointer = llama_cpp.llama_get_logits_ith(context, index)
    logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(n_vocab,))
    return logits


def _device_list(names: Sequence[str]) -> Any:
    """Return ggml's devices of these names, and a null after the last; none at all keeps llama.cpp from choosing some.

    Raises:
        HardwareError: there is no device of such a name.
    """
    by_name = _ggml("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    devices = [by_name(name.encode()) for name in names]
    for name, device in zip(names, devices, strict=True):
        if not device:
            raise HardwareError(
                f"Expected the device {name}, but llama.cpp does not have it any more; see `bimedix-edge doctor`."
            )
    return (ctypes.c_void_p * (len(devices) + 1))(*devices, None)


def _abort_callback(should_stop: Callable[[], bool] | None) -> Any:
    if should_stop is None:
        return llama_cpp.llama_cpp.ggml_abort_callback()
    return llama_cpp.llama_cpp.ggml_abort_callback(lambda _data: should_stop())


def _last_error() -> str:
    return "; ".join(_recent_errors) or "it gives no reason"
