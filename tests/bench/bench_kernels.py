"""The kernels against ggml's own on the matrices of the 8B model, alternated in one run.

    python tests/bench/bench_kernels.py [--types Q4_K,Q6_K] [--shapes down,k/v] [--tokens 1,512] [--rounds 7]

Three sides compute each product in turn: our kernels, ggml's CPU backend with the weights as they are in the file, and,
where ggml repacks the type, ggml with repacked weights, which is llama.cpp's default. Several copies of the weights
take turns, together larger than the caches, so that weights come from memory as in a model. Numbers are medians over
the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from gguf import GGMLQuantizationType
from native_products import KINDS, InitParameters, Weights, ggml_functions, library, random_weights, usable
from numpy.typing import NDArray

SHAPES = {
    "q/o": (4096, 4096),
    "k/v": (1024, 4096),
    "gate/up": (14336, 4096),
    "down": (4096, 14336),
    "output": (128256, 4096),
}
NAMES = ("amx", "avx512vnni", "avxvnni", "avx2")
TOKENS = (1, 4, 8, 512)
CACHE_BYTES = 128 << 20
Run = Callable[[], object]


def ggml() -> SimpleNamespace:
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    signatures = {
        "ggml_init": (pointer, [InitParameters]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_backend_cpu_init": (pointer, []),
        "ggml_backend_cpu_set_n_threads": (None, [pointer, ctypes.c_int]),
        "ggml_backend_cpu_buffer_type": (pointer, []),
        "ggml_backend_get_device": (pointer, [pointer]),
        "ggml_backend_dev_backend_reg": (pointer, [pointer]),
        "ggml_backend_dev_supports_op": (ctypes.c_bool, [pointer, pointer]),
        "ggml_backend_reg_get_proc_address": (pointer, [pointer, ctypes.c_char_p]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, [pointer, pointer]),
        "ggml_backend_buffer_free": (None, [pointer]),
        "ggml_backend_tensor_set": (None, [pointer, pointer, size, size]),
        "ggml_backend_graph_compute": (ctypes.c_int, [pointer, pointer]),
        "ggml_backend_buft_name": (ctypes.c_char_p, [pointer]),
    }
    return ggml_functions(signatures)


class Stock:
    """ggml's CPU backend and the products that it computes."""

    def __init__(self, n_threads: int) -> None:
        self.ggml = ggml()
        self.backend = self.ggml.ggml_backend_cpu_init()
        self.ggml.ggml_backend_cpu_set_n_threads(self.backend, n_threads)
        self.device = self.ggml.ggml_backend_get_device(self.backend)

    def repacking(self) -> int | None:
        """Return the buffer type that repacks its tensors; None if this build has none."""
        registration = self.ggml.ggml_backend_dev_backend_reg(self.device)
        address = self.ggml.ggml_backend_reg_get_proc_address(registration, b"ggml_backend_dev_get_extra_bufts")
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(self.device)
        for kind in iter(kinds) if kinds else ():
            if kind is None:
                return None
            if b"REPACK" in self.ggml.ggml_backend_buft_name(kind):
                return int(kind)
        return None

    def product(self, weights: Weights, x: NDArray[np.float32], buffer_type: int | None) -> tuple[Run, Run] | None:
        """Return a function that computes x W^T and one that frees it; None if the buffer type refuses such weights."""
        g = self.ggml
        contexts = [g.ggml_init(InitParameters(1 << 20, None, True)) for _ in range(2)]
        w = g.ggml_new_tensor_2d(contexts[0], GGMLQuantizationType[weights.kind], weights.n_columns, len(weights.rows))
        activations = g.ggml_new_tensor_2d(contexts[1], GGMLQuantizationType.F32, x.shape[1], len(x))
        y, graph = g.ggml_mul_mat(contexts[1], w, activations), g.ggml_new_graph(contexts[1])
        g.ggml_build_forward_expand(graph, y)
        plain = g.ggml_backend_cpu_buffer_type()
        buffers = [
            g.ggml_backend_alloc_ctx_tensors_from_buft(contexts[0], buffer_type or plain),
            g.ggml_backend_alloc_ctx_tensors_from_buft(contexts[1], plain),
        ]

        def free() -> None:
            for buffer, context in zip(buffers, contexts, strict=True):
                g.ggml_backend_buffer_free(buffer)
                g.ggml_free(context)

        if not g.ggml_backend_dev_supports_op(self.device, y):
            free()
            return None
        rows = np.ascontiguousarray(weights.rows)
        g.ggml_backend_tensor_set(w, rows.ctypes.data, 0, rows.nbytes)
        g.ggml_backend_tensor_set(activations, x.ctypes.data, 0, x.nbytes)
        return lambda: g.ggml_backend_graph_compute(self.backend, graph), free


def ours(name: str, weights: Weights, x: NDArray[np.float32], n_threads: int) -> Run:
    y = np.empty((len(x), len(weights.rows)), np.float32)
    data, kind = weights.memory.ctypes.data, GGMLQuantizationType[weights.kind]
    arguments = (name.encode(), kind, data, weights.stride, len(weights.rows))

    def run() -> NDArray[np.float32]:
        library().bimedix_edge_kernels_multiply(
            *arguments, x.ctypes.data, len(x), weights.n_columns, y.ctypes.data, n_threads
        )
        return y

    return run


@dataclass
class Contestant:
    """One way to compute a product: a run for each copy of the weights, and the seconds of all runs."""

    runs: list[Run]
    seconds: list[float]


def measure(contestants: dict[str, Contestant], rounds: int) -> dict[str, float]:
    n_copies = len(next(iter(contestants.values())).runs)
    for turn in range(-1, rounds):  # the first one warms up
        for contestant in contestants.values():
            for copy in range(n_copies):
                start_s = time.perf_counter()
                contestant.runs[copy]()
                if turn >= 0:
                    contestant.seconds.append(time.perf_counter() - start_s)
    return {name: statistics.median(contestant.seconds) for name, contestant in contestants.items()}


def bench(name: str, kind: str, shape: tuple[int, int], n_tokens: int, options: argparse.Namespace) -> dict[str, float]:
    rng = np.random.default_rng(0)
    weights = random_weights(kind, *shape, rng)
    # arithmetic, not memory, limits products of many tokens
    n_copies = 1 if n_tokens > 64 else -(-CACHE_BYTES // weights.rows.nbytes)
    copies = [weights, *(random_weights(kind, *shape, rng) for _ in range(n_copies - 1))]
    x = rng.standard_normal((n_tokens, shape[1])).astype(np.float32)
    stock = Stock(options.threads)
    contestants = {"ours": Contestant([ours(name, copy, x, options.threads) for copy in copies], [])}
    frees: list[Run] = []
    for label, buffer_type in (("ggml", None), ("ggml repacked", stock.repacking())):
        if label != "ggml" and buffer_type is None:
            continue
        products = [product for copy in copies if (product := stock.product(copy, x, buffer_type))]
        frees += [free for _, free in products]
        if products:
            contestants[label] = Contestant([run for run, _ in products], [])
    medians = measure(contestants, options.rounds)
    for free in frees:
        free()
    return medians


def lines(name: str, options: argparse.Namespace) -> Iterator[str]:
    yield f"{'type':6}{'shape':9}{'tokens':>7} {'by':15}{'ms':>9}{'GOPS':>8}{'GB/s':>7}{'ours is':>9}"
    for kind in options.types.split(","):
        for label in options.shapes.split(","):
            for n_tokens in map(int, options.tokens.split(",")):
                n_rows, n_columns = SHAPES[label]
                size = random_weights(kind, 1, n_columns, np.random.default_rng(0)).rows.nbytes * n_rows
                medians = bench(name, kind, SHAPES[label], n_tokens, options)
                for by, seconds in medians.items():
                    operations = 2 * n_rows * n_columns * n_tokens / seconds / 1e9
                    numbers = f"{seconds * 1e3:9.3f}{operations:8.1f}{size / seconds / 1e9:7.1f}"
                    ratio = "" if by == "ours" else f"{seconds / medians['ours']:8.2f}x"
                    yield f"{kind:6}{label:9}{n_tokens:7} {by:15}{numbers}{ratio}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", choices=NAMES, help="by default the fastest that this machine runs")
    parser.add_argument("--types", default=",".join(KINDS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    name = options.kernels or next(filter(usable, NAMES))
    print(f"kernels {name}, {options.threads} threads, medians of {options.rounds} rounds")
    for line in lines(name, options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
