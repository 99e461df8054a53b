"""llama.cpp's model and context through llama-cpp-python's low-level binding.

One `Decoder` is one model and one context with a key-value (KV) cache that its sequences share. It evaluates runs of
tokens or embeddings at given positions of sequences, and samples from the logits of their last positions. The engine
decides what the positions mean and which of them are reused.

The binding's high-level class is not used. It reuses the KV cache by token-id prefix, and image positions have no
token, so two images could match.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.decoder.batches import BatchBuffers, Run
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
from bimedix_edge.decoder.placement import DecoderOptions
from bimedix_edge.decoder.sampler import Sampler, logits_of
from bimedix_edge.decoder.token_rows import TokenRows, matrix_types
from bimedix_edge.errors import DecoderError, DeviceError, HardwareError
from bimedix_edge.prompt import END_OF_TURN
from bimedix_edge.sampling import Sampling

if TYPE_CHECKING:
    from bimedix_edge.decoder.constraint import ConstraintTokens

__all__ = ["Aborted", "Decoder"]

_ABORTED = 2
_FLASH_ATTENTION_ON = 1
_KV_TYPES = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
# see `Decoder.least_step`: ggml's attention multiplies tiles of 64 from 64 on, and AMX's tiles are worth it from 20 on
_EXACT_TYPES = {llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q8_0, llama_cpp.GGML_TYPE_Q4_K}
_EXACT_TYPES |= {llama_cpp.GGML_TYPE_Q5_K, llama_cpp.GGML_TYPE_Q6_K}
_GGML_LEAST_STEP, _TILES_LEAST_STEP, _KERNELS_LEAST_STEP, _EXACT_STEP = 64, 32, 16, 1


class Aborted(Exception):
    """`should_stop` ended an evaluation. Each sequence is as it was before."""


class Decoder:
    """A loaded GGUF model and one context.

    Args:
        path: Path of the GGUF file, already verified against its bundle's manifest.
        spec: Its description in the manifest.
        options: Sizes, threads, kernels and devices.

    Attributes:
        spec: As given.
        kernels: Kernels in use, and why these.
        n_ctx, n_seq_max, n_batch: As in the options; llama.cpp may round n_ctx up.
        least_step: Smallest chunk whose results are bit-identical to those of a longer one.
        exact_beside: Whether the results of a chunk of any length do not depend on what else is in the batch.

    Raises:
        DecoderError: llama.cpp refuses the file, or the file is not what the manifest describes.
        HardwareError: The context does not fit into memory, or the kernels cannot be used.
    """

    def __init__(self, path: Path, spec: DecoderSpec, options: DecoderOptions) -> None:
        self._model: llama_cpp.llama_model_p | None = None
        self._context: llama_cpp.llama_context_p | None = None
        self.spec = spec
        self._path = path
        self.n_batch = options.n_batch
        self.n_seq_max = options.n_seq_max
        self.placement = options.placement
        start()
        self.kernels = open_kernels(options.kernels)
        # at most one position of a sequence has logits; llama.cpp would reserve memory for those of a whole batch
        n_outputs = min(options.n_seq_max, options.n_batch)
        try:
            self._load(path)
            self._check_spec(path)
            self._create_context(options.n_ctx, n_outputs, options.n_threads)
        except BaseException:
            self.close()
            raise
        self.n_ctx = int(llama_cpp.llama_n_ctx(self._context))
        self.least_step = min(self._least_step(), options.n_batch)
        self.exact_beside = self.least_step == _EXACT_STEP
        self._buffers = BatchBuffers(options.n_batch, n_outputs)

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
                f"{', '.join(self.placement.devices)} cannot hold {self.placement.n_gpu_layers} layers: llama.cpp "
                f"could not load them ({last_error()}). Choose fewer --gpu-layers or a larger --fit-target."
            )
        if not self._model:
            raise DecoderError(
                f"llama.cpp {PINNED_VERSION} refuses {path.name} ({last_error()}). Convert the checkpoint again."
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
                f"{path.name} does not match the manifest: its layers, width, heads, KV heads and vocabulary are "
                f"{found}, and the manifest says {stated}. Convert the checkpoint again."
            )

    def _create_context(self, n_ctx: int, n_outputs: int, n_threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = self.n_seq_max
        params.n_outputs_max = n_outputs
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = n_threads
        params.no_perf = True
        params.type_k = params.type_v = _KV_TYPES[self.placement.kv_type]
        params.offload_kqv = self.placement.kv_on_gpu
        params.op_offload = self.placement.prefill_on_gpu
        # by default llama.cpp turns it off where it sees our device, and keys and values that are not f16 need it
        params.flash_attn_type = _FLASH_ATTENTION_ON
        forget_errors()
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise HardwareError(
                f"A context of {n_ctx} tokens does not fit into memory: llama.cpp could not create it "
                f"({last_error()}). Choose a smaller --ctx-size."
            )

    def special(self, name: str) -> int:
        """Return the id of a special token given by its text.

        Raises:
            DecoderError: The vocabulary has no such token.
        """
        tokens = self.tokenize(name, parse_special=True)
        if len(tokens) != 1:
            raise DecoderError(f"The vocabulary has no special token {name}. Convert the checkpoint again.")
        return tokens[0]

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Return the tokens of a text; unless `parse_special`, special tokens in it are plain text.

        Raises:
            DecoderError: The vocabulary is damaged.
        """
        data = text.encode("utf-8")
        room = len(data) + 1  # a byte-level vocabulary never needs more tokens than bytes
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, parse_special)
        if count < 0:
            raise DecoderError(
                f"The vocabulary is damaged: llama.cpp makes {-count} tokens of {len(data)} bytes of text, more than "
                "there can be. Convert the checkpoint again."
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

    def evaluate(self, runs: Sequence[Run], should_stop: Callable[[], bool] | None = None) -> list[int]:
        """Evaluate runs of positions in one pass over the weights, which is one call of llama.cpp.

        A batch of llama.cpp holds tokens or embeddings. Beside a run of embeddings, tokens become embeddings, too.

        Args:
            runs: At most n_batch positions, and at most n_seq_max of them with logits.
            should_stop: Polled between the operations of the graph.

        Returns:
            The index in the batch for each run that wants logits, in order. `sample` and `logits` take it until the
            next evaluation.

        Raises:
            Aborted: `should_stop` returned true. Each sequence then ends where its first run began.
            DecoderError: llama.cpp failed, or the embeddings are not of this decoder; likewise.
            DeviceError: A GPU failed; likewise.
            ValueError: The runs do not fit into a batch.
        """
        embeds = self._as_embeds(runs)
        self._decode(self._buffers.fill(runs, embeds), runs, should_stop)
        ends = itertools.accumulate(len(run.content) for run in runs)
        return [end - 1 for run, end in zip(runs, ends, strict=True) if run.wants_logits]

    def _as_embeds(self, runs: Sequence[Run]) -> NDArray[np.float32] | None:
        """Return all runs as embeddings, float32 (n, n_embd), C-contiguous; None if all of them hold tokens."""
        if not any(isinstance(run.content, np.ndarray) for run in runs):
            return None
        rows = [
            self._checked(run.content) if isinstance(run.content, np.ndarray) else self.token_embeds(run.content)
            for run in runs
        ]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _checked(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        if embeds.ndim != 2 or embeds.shape[1] != self.spec.n_embd or embeds.dtype != np.float32:
            raise DecoderError(
                f"The image embeddings do not fit the decoder: they are {embeds.dtype} {embeds.shape}, and it takes "
                f"float32 of width {self.spec.n_embd}. Convert the checkpoint again."
            )
        return np.ascontiguousarray(embeds)

    def token_embeds(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings that llama.cpp looks up for tokens, float32 (n, n_embd).

        Evaluating tokens or their embeddings gives bit-identical results.

        Raises:
            DecoderError: The file changed since it was loaded.
        """
        return self._token_rows(tokens)

    @functools.cached_property
    def _token_rows(self) -> TokenRows:
        try:
            return TokenRows(self._path, self.spec.n_vocab, self.spec.n_embd, ggml)
        except (OSError, ValueError) as error:
            raise DecoderError(
                f"The decoder's file changed since it was loaded ({error}). Open the model again."
            ) from error

    def _decode(
        self, batch: llama_cpp.llama_batch, runs: Sequence[Run], should_stop: Callable[[], bool] | None
    ) -> None:
        """Evaluate a batch; if that fails, cut each sequence back to where its first run began."""
        callback = _abort_callback(should_stop)
        forget_errors()
        llama_cpp.llama_set_abort_callback(self._context, callback, None)
        status = llama_cpp.llama_decode(self._context, batch)
        if status == 0:
            llama_cpp.llama_synchronize(self._context)
            return
        starts = {run.seq: run.position for run in reversed(runs)}
        for seq, position in starts.items():
            self.truncate(seq, position)
        if status == _ABORTED:
            raise Aborted
        if self.placement.devices:
            raise DeviceError(
                f"{', '.join(self.placement.devices)} failed or is out of memory, and the answer was interrupted: "
                f"llama.cpp returned {status} ({last_error()}). Choose fewer --gpu-layers, or 0 for the CPU."
            )
        raise DecoderError(
            f"llama.cpp failed to evaluate {batch.n_tokens} positions from {max(starts.values())} on: it returned "
            f"{status} ({last_error()}). Start a new conversation, and report this if it happens again."
        )

    def sampler(self, sampling: Sampling) -> Sampler:
        """Return a new sampler for one answer; close it when the answer is complete.

        The first one with a grammar takes about a second longer, to prepare a vocabulary of 128,256 tokens.

        Raises:
            SchemaError: The grammar allows nothing, or takes too much work.
        """
        constraint = None if sampling.grammar is None else self._constraint_tokens.constraint(sampling.grammar)
        return Sampler(sampling, self.spec.n_vocab, constraint)

    @functools.cached_property
    def _constraint_tokens(self) -> ConstraintTokens:
        # imported here, since most answers have no grammar
        from bimedix_edge.decoder.constraint import ConstraintTokens

        tokens = range(self.spec.n_vocab)
        special = [token for token in tokens if llama_cpp.llama_vocab_is_control(self._vocab, token)]
        pieces = [self.piece(token) for token in tokens]
        return ConstraintTokens(pieces, special, self.special(END_OF_TURN), self.tokenize)

    def sample(self, sampler: Sampler, index: int = -1) -> int:
        """Choose the next token from logits of the last evaluation, by an index of `evaluate`; by default its last."""
        assert self._context is not None
        return sampler.sample(self._context, index)

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Return a copy of logits of the last evaluation, float32 (n_vocab,), by an index of `evaluate`."""
        assert self._context is not None
        logits: NDArray[np.float32] = logits_of(self._context, index, self.spec.n_vocab).copy()
        return logits

    def truncate(self, seq: int, position: int) -> None:
        """Remove a sequence's positions from `position` on.

        Raises:
            DecoderError: llama.cpp cannot remove them.
        """
        memory = llama_cpp.llama_get_memory(self._context)
        if not llama_cpp.llama_memory_seq_rm(memory, seq, position, -1):
            raise DecoderError(
                f"llama.cpp cannot remove a conversation's positions from {position} on. Start a new conversation."
            )

    def save(self, seq: int) -> bytearray:
        """Return a copy of a sequence's part of the KV cache.

        Raises:
            DecoderError: llama.cpp copies only part of it.
        """
        data = bytearray(llama_cpp.llama_state_seq_get_size(self._context, seq))
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        if (n_bytes := llama_cpp.llama_state_seq_get_data(self._context, buffer, len(data), seq)) != len(data):
            raise DecoderError(f"llama.cpp copied {n_bytes} of a conversation's {len(data)} bytes. Please report this.")
        return data

    def restore(self, seq: int, data: bytearray) -> None:
        """Put back what `save` returned, bit for bit, into an empty sequence; this takes a free cell for each position.

        Raises:
            DecoderError: llama.cpp refuses it; the sequence is empty then.
        """
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        if not llama_cpp.llama_state_seq_set_data(self._context, buffer, len(data), seq):
            self.truncate(seq, 0)
            raise DecoderError("llama.cpp refuses a conversation that it saved itself. Please report this.")

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
