"""An importance matrix from text: measures which columns of each matrix have large inputs while llama.cpp computes.

The decoder is written as F16 beside the result, evaluated on the text in chunks of 512 tokens that each start with BOS,
and deleted. llama.cpp shows each matrix product to a callback before and after it computes it; the callback sums the
squares of the inputs of the blocks' matrices. Only text is measured, not the tokens of images.

Source: llama.cpp `tools/imatrix/imatrix.cpp` (which products count, chunks, BOS); `ggml/include/ggml.h`, struct
ggml_tensor, as vendored in llama-cpp-python 0.3.36. Sums are float64 here and float32 there.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._ggml as llama_ggml
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from bimedix_edge.converters.decoder.gguf import About, declare_decoder, decoder_parts
from bimedix_edge.converters.decoder.imatrix import write_imatrix
from bimedix_edge.converters.decoder.quantize import file_type_named, n_threads
from bimedix_edge.converters.parts import n_bytes, write_parts
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.source.tokenizer import read_vocabulary
from bimedix_edge.errors import DecoderError, HardwareError, InputError
from bimedix_edge.staging import disk_errors, exclusive, write_file

__all__ = ["CHUNK_TOKENS", "Calibration", "calibrate"]

CHUNK_TOKENS = 512
_MAX_TEXT_BYTES = 64 << 20
_ROWS_AT_A_TIME = 64
_OBJECT_BYTES = 32  # ggml.h, GGML_OBJECT_SIZE


class GgmlTensor(ctypes.Structure):
    """ggml.h, struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


# llama.cpp must print nothing; the callback lives as long as the process, since llama.cpp keeps the pointer
_NO_LOG = llama_cpp.llama_log_callback(lambda _level, _text, _user_data: None)


def calibrate(
    checkpoint: Checkpoint, text: Path, output: Path, progress: Callable[[str, int, int], None] | None = None
) -> int:
    """Measure an importance matrix and write it as llama.cpp's GGUF.

    Args:
        checkpoint: The source, with an adapter merged in if there is one.
        text: UTF-8 text like what the model will read; special tokens in it are read as plain text.
        output: The file to write; meanwhile, an F16 decoder needs room beside it.
        progress: Called with the stage (`decoder`, `calibrate`) and its bytes or tokens done and in all.

    Returns:
        The number of evaluated tokens.

    Raises:
        InputError: The text is not UTF-8 or is shorter than one chunk.
        CheckpointError: A weight is NaN, infinite or beyond F16.
        HardwareError: There is too little room or memory.
        DecoderError: llama.cpp refuses the decoder or fails.
    """
    report = progress or (lambda *_: None)
    data = _read_text(text)
    scratch = output.with_name(f".{output.name}.calibration")
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(output), _empty_directory(scratch):
            _write_decoder(scratch / "decoder.gguf", checkpoint, report)
            with Calibration(scratch / "decoder.gguf", checkpoint.config.decoder.n_ctx_train) as evaluation:
                n_tokens = evaluation.run(data, text, report)
            write_imatrix(scratch / "imatrix.gguf", evaluation.sums, n_tokens, evaluation.n_ctx)
            write_file(output, (scratch / "imatrix.gguf").read_bytes(), mode=0o644)
    return n_tokens


def _read_text(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > _MAX_TEXT_BYTES:
            raise InputError(f"The text {path} has {size} bytes, more than {_MAX_TEXT_BYTES}. Shorten it.")
        data = path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise InputError(f"The text {path} cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The text {path} is not UTF-8 (byte {error.start}). Convert it to UTF-8.") from error
    return data


@contextlib.contextmanager
def _empty_directory(path: Path) -> Iterator[None]:
    """Make a directory that is removed after the block; leftovers of a killed run are removed first."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _PlainFile:
    """A target of `write_parts` without a journal."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.n_parts = 0

    def write(self, data: memoryview) -> None:
        self.file.write(data)

    def end_part(self, _name: str) -> None:
        self.n_parts += 1


def _write_decoder(path: Path, checkpoint: Checkpoint, report: Callable[[str, int, int], None]) -> None:
    kind = file_type_named("F16")
    parts = decoder_parts(
        checkpoint,
        declare_decoder(checkpoint, kind),
        file_type=kind,
        vocabulary=read_vocabulary(checkpoint.directory, checkpoint.config.decoder.n_vocab),
        about=About("calibration", "", (), ""),
    )
    total = n_bytes(parts)
    if (free := shutil.disk_usage(path.parent).free) < total:
        raise HardwareError(
            f"The disk has too little room for the F16 decoder that calibration needs: {free / 1e6:,.0f} MB free, "
            f"{total / 1e6:,.0f} MB needed. Save the importance matrix to another disk."
        )
    file = _PlainFile(path)
    with file.file, ThreadPoolExecutor(n_threads()) as pool:
        write_parts(file, parts, pool, 2 * n_threads(), lambda done: report("decoder", done, total))


class Calibration:
    """One model and one context of llama.cpp, whose matrix products are observed.

    Args:
        path: The F16 decoder.
        n_ctx_train: Longest sequence that the model was trained on.

    Attributes:
        sums: Tensor name to the sum of the squares of its inputs, float64 (n_per_row,).
        n_ctx: Tokens in each chunk.
    """

    def __init__(self, path: Path, n_ctx_train: int) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.n_ctx = min(CHUNK_TOKENS, n_ctx_train)
        self._library = _library()
        self._fault = ""
        # kept for the life of the context, since llama.cpp keeps the pointer
        self._watch = llama_cpp.ggml_backend_sched_eval_callback(self._see)
        llama_cpp.llama_log_set(_NO_LOG, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._context = None
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise DecoderError("llama.cpp refuses the F16 decoder. Report this, and name the checkpoint.")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def __enter__(self) -> Calibration:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.n_ctx
        params.n_threads = params.n_threads_batch = n_threads()
        params.cb_eval = self._watch
        # the callback reads the system's memory
        params.op_offload = params.offload_kqv = False
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            self.__exit__()
            raise HardwareError(
                f"There is too little memory for a context of {self.n_ctx} tokens. Close other programs."
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def run(self, data: bytes, name: Path, report: Callable[[str, int, int], None]) -> int:
        """Evaluate the text chunk by chunk and return the number of tokens."""
        tokens = self._tokenize(data)
        n_chunks = len(tokens) // self.n_ctx
        if not n_chunks:
            raise InputError(
                f"The text {name} is too short to calibrate on: it has {len(tokens)} tokens, and at least {self.n_ctx} "
                "tokens are needed. Give a longer one, of about a hundred pages."
            )
        total = n_chunks * self.n_ctx
        for start in range(0, total, self.n_ctx):
            self.evaluate(tokens[start : start + self.n_ctx])
            report("calibrate", start + self.n_ctx, total)
        return total

    def _tokenize(self, data: bytes) -> list[int]:
        room = len(data) + 2  # a byte-level vocabulary needs at most one token for each byte, and BOS
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, room, True, False)
        return list(buffer[: max(count, 0)])

    def evaluate(self, tokens: list[int]) -> None:
        """Compute one chunk, whose first token is replaced by BOS if the vocabulary wants one.

        Raises:
            DecoderError: llama.cpp fails, or its graph cannot be read.
        """
        if llama_cpp.llama_vocab_get_add_bos(self._vocab):
            tokens = [llama_cpp.llama_vocab_bos(self._vocab), *tokens[1:]]
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                # with fewer outputs, llama.cpp would leave tokens out of the last block
                batch.logits[index] = 1
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            status = llama_cpp.llama_decode(self._context, batch)
            llama_cpp.llama_synchronize(self._context)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status or self._fault:
            raise DecoderError(
                f"llama.cpp failed to evaluate {len(tokens)} tokens: {self._fault or f'it returned {status}'}. "
                "Run the command again, and report this if it happens again."
            )

    def _see(self, address: int, ask: bool, _user_data: Any) -> bool:
        """Answer llama.cpp's callback; an exception cannot leave a C callback, so it is kept for `evaluate`."""
        try:
            return self.observe(GgmlTensor.from_address(address), ask=ask)
        except Exception as error:
            self._fault = f"its graph cannot be read ({error})"
            return False

    def observe(self, product: GgmlTensor, *, ask: bool) -> bool:
        """Say whether a product is wanted (`ask`), or add up the squares of its input once it is computed."""
        if self._library.ggml_op_name(product.op) != b"MUL_MAT":
            return not ask
        weight, values = (GgmlTensor.from_address(product.src[index]) for index in (0, 1))
        # CUDA0#blk.0.attn_k.weight#0 is a copy of blk.0.attn_k.weight
        parts = weight.name.decode().split("#")
        name = parts[1] if len(parts) > 1 else parts[0]
        wanted = name.startswith("blk.") and values.type == int(GGMLQuantizationType.F32)
        if ask or not wanted:
            return wanted or not ask
        total = self.sums.setdefault(name, np.zeros(values.ne[0]))
        for row in range(0, values.ne[1], _ROWS_AT_A_TIME):
            n_rows = min(_ROWS_AT_A_TIME, values.ne[1] - row)
            raw = (ctypes.c_char * (n_rows * values.nb[1])).from_address(values.data + row * values.nb[1])
            rows = np.ndarray((n_rows, values.ne[0]), np.float32, raw, strides=(values.nb[1], 4))
            total += np.square(rows, dtype=np.float64).sum(axis=0)
        return True


def _library() -> Any:
    """Return ggml, after checking that its tensors have the layout of `GgmlTensor`."""
    library: Any = llama_ggml.libggml
    library.ggml_op_name.argtypes = [ctypes.c_int]
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_tensor_overhead.restype = ctypes.c_size_t
    if library.ggml_tensor_overhead() != _OBJECT_BYTES + ctypes.sizeof(GgmlTensor):
        raise DecoderError(
            "The tensors of the installed llama-cpp-python have another size than those of 0.3.36, whose layout this "
            "program knows. Install version 0.3.36."
        )
    return library
