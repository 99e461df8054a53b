"""The part of llama.cpp's low-level API that the tests need."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


class LlamaModel:
    """A GGUF in llama.cpp, with a context in float32."""

    def __init__(self, path: Path, *, n_ctx: int = 256, vocab_only: bool = False) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp refuses {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_ctx = n_ctx

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), False, special)
        assert count >= 0
        return list(buffer[:count])

    def logits(self, tokens: list[int] | None = None, embeds: Any = None, positions: Any = None) -> Any:
        """Return float32 (n, n_vocab) for tokens or embeddings at positions 0, 1, 2, … or at the given ones."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.n_ctx
        params.type_k = params.type_v = 0  # float32
        params.flash_attn_type = 0
        params.n_threads = params.n_threads_batch = 2
        context = llama_cpp.llama_init_from_model(self.model, params)
        count = len(tokens) if tokens is not None else len(embeds)
        n_embd = llama_cpp.llama_model_n_embd(self.model)
        batch = llama_cpp.llama_batch_init(count, 0 if tokens is not None else n_embd, 1)
        try:
            batch.n_tokens = count
            for index in range(count):
                batch.pos[index] = index if positions is None else int(positions[index])
                batch.n_seq_id[index], batch.logits[index] = 1, 1
                batch.seq_id[index][0] = 0
                if tokens is not None:
                    batch.token[index] = tokens[index]
            if embeds is not None:
                np.ctypeslib.as_array(batch.embd, (count, n_embd))[:] = embeds
            assert llama_cpp.llama_decode(context, batch) == 0
            n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
            return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (count, n_vocab)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
