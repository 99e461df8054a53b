"""The cost of a schema for each token of an answer: `python tests/bench/bench_schema.py VOCABULARY.gguf`.

The script reads only the vocabulary of the GGUF, so any model's file will do, such as llama.cpp's
`ggml-vocab-llama-bpe.gguf`. It walks a bilingual text through two grammars. It measures the mask with its list of ids,
the same with the choice by numpy's argmax, and an argmax over all tokens. Times are processor times.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np

from bimedix_edge.decoder.constraint import ConstraintTokens
from bimedix_edge.schema.grammar import grammar_for
from bimedix_edge.schema.reports import load_schema

REPORT = (
    '{"examination": "Chest radiograph, frontal", "findings": ['
    '{"observation": "عقيدة مستديرة بقطر عشرة ملم", "location": "upper zone", "laterality": "right", '
    '"certainty": "present"}, '
    '{"observation": "Blunted costophrenic angle", "location": "base", "laterality": "left", "certainty": "probable"}'
    '], "impression": ["Solitary nodule of the right lung.", "انصباب جنبي أيسر محتمل."], "limitations": "One view."}'
)
ROUNDS = 5


# a module variable, since llama.cpp keeps the pointer
NO_LOG = llama_cpp.llama_log_callback(lambda *_: None)


def read_vocabulary(path: Path) -> tuple[ConstraintTokens, Callable[[str], list[int]], int]:
    llama_cpp.llama_log_set(NO_LOG, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    start_s = time.process_time()
    buffer = ctypes.create_string_buffer(1024)
    sizes = (llama_cpp.llama_token_to_piece(vocab, token, buffer, 1024, 0, False) for token in range(n_vocab))
    pieces = [buffer.raw[:size] for size in sizes]
    special = [token for token in range(n_vocab) if llama_cpp.llama_vocab_is_control(vocab, token)]

    def tokenize(text: str) -> list[int]:
        data = text.encode()
        tokens = (llama_cpp.llama_token * (len(data) + 1))()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
        return list(tokens[:count])

    vocabulary = ConstraintTokens(pieces, special, llama_cpp.llama_vocab_eot(vocab), tokenize)
    print(f"{n_vocab} tokens, prepared once in {time.process_time() - start_s:.2f} s")
    return vocabulary, tokenize, n_vocab


def main() -> None:
    vocabulary, tokenize, n_vocab = read_vocabulary(Path(sys.argv[1]))
    logits = np.random.default_rng(0).normal(size=n_vocab).astype(np.float32)
    free_ms = []
    for _ in range(100):
        start_s = time.process_time()
        np.argmax(logits)
        free_ms.append((time.process_time() - start_s) * 1e3)
    print(f"argmax over all: {np.median(free_ms):.3f} ms")
    for name, schema in (("report", load_schema("report")), ("any object", None)):
        masks, choices, compiles = [], [], []
        for _ in range(ROUNDS):
            start_s = time.process_time()
            held = vocabulary.constraint(grammar_for(schema))
            compiles.append((time.process_time() - start_s) * 1e3)
            for token in tokenize(REPORT):
                start_s = time.process_time()
                allowed = held.allowed()
                masks.append((time.process_time() - start_s) * 1e3)
                np.argmax(logits[allowed])
                choices.append((time.process_time() - start_s) * 1e3)
                held.accept(token)
        print(
            f"{name}: compiled in {np.median(compiles):.2f} ms; a token's mask median {np.median(masks):.3f}, mean "
            f"{np.mean(masks):.3f}, p99 {np.percentile(masks, 99):.2f}, most {max(masks):.1f} ms; with the choice mean "
            f"{np.mean(choices):.3f} ms ({len(masks)} tokens)"
        )


if __name__ == "__main__":
    main()
