"""Attention of the kernels: numpy in float64 judges the scalar version and each instruction set this machine runs."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from native_products import INSTRUCTION_SETS, InitParameters, ggml_functions, library, usable
from numpy.typing import NDArray

# sums of float32 over some hundred cells, and an exponential of float32
TOLERANCE = 5e-6
SCALE = 0.125

Cache = NDArray[np.float16]


def attend(
    name: str, q: NDArray[np.float32], k: Cache, v: Cache, seen: NDArray[np.bool_] | NDArray[np.float16]
) -> NDArray[np.float32] | None:
    """Return attention (tokens, heads, size) of q (heads, tokens, size) over k and v (cells, heads, size) or None.

    `seen` (tokens, cells) says which cells a token sees, or is the mask itself, which is added to the products.
    """
    n_heads, n_tokens, size = q.shape
    mask = np.where(seen, 0, -np.inf).astype(np.float16) if seen.dtype == np.bool_ else seen
    out = np.full((n_tokens, n_heads, size), np.nan, np.float32)
    q, k, v = (np.ascontiguousarray(each) for each in (q, k, v))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function = library().bimedix_edge_kernels_attend
    function.argtypes = [ctypes.c_char_p, pointer, number, number, number, pointer, pointer, number, number]
    function.argtypes += [pointer, ctypes.c_float, pointer, number]
    caches = (k.ctypes.data, v.ctypes.data, len(k), k.shape[1])
    arguments = (name.encode(), q.ctypes.data, n_tokens, n_heads, size, *caches, mask.ctypes.data, SCALE)
    status = function(*arguments, out.ctypes.data, 2)
    assert status in (0, 1)
    return None if status else out


def ggml_attend(q: NDArray[np.float32], k: Cache, v: Cache, seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the same by ggml's CPU backend."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "ggml_init": (pointer, [InitParameters]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_3d": (pointer, [pointer, ctypes.c_int, number, number, number]),
        "ggml_flash_attn_ext": (pointer, [*[pointer] * 5, *[ctypes.c_float] * 3]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_graph_compute_with_ctx": (ctypes.c_int, [pointer, pointer, ctypes.c_int]),
        "ggml_get_data": (pointer, [pointer]),
    }
    ggml = ggml_functions(signatures)
    context = ggml.ggml_init(InitParameters(64 << 20, None, False))
    padded = np.zeros((-(-len(seen) // 64) * 64, seen.shape[1]), np.float16)
    padded[: len(seen)] = np.where(seen, 0, -np.inf)
    tensors = []
    for array in (q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), padded[None]):
        data = np.ascontiguousarray(array)
        kind = GGMLQuantizationType.F32 if data.dtype == np.float32 else GGMLQuantizationType.F16
        tensors.append(ggml.ggml_new_tensor_3d(context, kind, *reversed(data.shape)))
        ctypes.memmove(ggml.ggml_get_data(tensors[-1]), data.ctypes.data, data.nbytes)
    node, graph = ggml.ggml_flash_attn_ext(context, *tensors, SCALE, 0.0, 0.0), ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, node)
    assert ggml.ggml_graph_compute_with_ctx(context, graph, 2) == 0
    out = np.empty((q.shape[1], q.shape[0], q.shape[2]), np.float32)
    ctypes.memmove(out.ctypes.data, ggml.ggml_get_data(node), out.nbytes)
    ggml.ggml_free(context)
    return out


def exactly(q: NDArray[np.float32], k: Cache, v: Cache, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    shared = len(q) // k.shape[1]
    keys, values = (np.repeat(each.astype(np.float64), shared, axis=1) for each in (k, v))
    products = np.einsum("htd,chd->htc", q.astype(np.float64), keys) * SCALE
    products = np.where(seen, products, -np.inf)
    weights = np.exp(products - products.max(-1, keepdims=True))
    return np.einsum("htc,chd->thd", weights / weights.sum(-1, keepdims=True), values)


def problem(
    rng: np.random.Generator, n_tokens: int, n_cells: int, *heads: int
) -> tuple[NDArray[np.float32], Cache, Cache]:
    """Return random queries, keys and values; `heads` are the number of heads, of their KV heads, and the head size."""
    n_heads, n_kv_heads, size = heads
    q = (3 * rng.standard_normal((n_heads, n_tokens, size))).astype(np.float32)
    k, v = (rng.standard_normal((n_cells, n_kv_heads, size)).astype(np.float16) for _ in range(2))
    return q, k, v


def causal(n_tokens: int, n_cells: int) -> NDArray[np.bool_]:
    return np.tri(n_tokens, n_cells, n_cells - n_tokens, dtype=bool)


@pytest.fixture(autouse=True)
def runs_here(request: pytest.FixtureRequest) -> None:
    if not usable(request.getfixturevalue("name")):
        pytest.skip("this processor cannot run it")


each_set = pytest.mark.parametrize("name", ["scalar", *INSTRUCTION_SETS])


@each_set
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (4, 4), (8, 2), (32, 1)])
@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_attention_is_that_of_float64(name: str, n_heads: int, n_kv_heads: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for n_tokens, n_cells in ((1, 1), (1, 77), (3, 32), (5, 33), (17, 100), (70, 256)):
        q, k, v = problem(rng, n_tokens, n_cells, n_heads, n_kv_heads, size)
        seen = causal(n_tokens, n_cells)
        found, expected = attend(name, q, k, v, seen), exactly(q, k, v, seen)
        assert found is not None
        assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


@each_set
@pytest.mark.parametrize(("n_tokens", "share"), [(1, 0.01), (8, 0.01), (100, 1.1)])
def test_it_is_more_exact_than_ggmls(name: str, n_tokens: int, share: float) -> None:
    """Below 64 tokens, ggml adds up in half precision."""
    q, k, v = problem(np.random.default_rng(5), n_tokens, 300, 8, 2, 128)
    seen = causal(n_tokens, 300)
    exact, ours = exactly(q, k, v, seen), attend(name, q, k, v, seen)
    assert ours is not None
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    of_ggml = np.linalg.norm(ggml_attend(q, k, v, seen) - exact) / np.linalg.norm(exact)
    print(f"{name}, {n_tokens} tokens: {error:.1e}, ggml {of_ggml:.1e}")
    assert of_ggml < 0.01  # both compute the same function
    assert error < of_ggml * share


@each_set
def test_tokens_see_only_the_cells_of_their_own_conversation(name: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = problem(rng, 12, 150, 8, 2, 64)
    owner = rng.integers(0, 3, 150)
    of_token = np.array([0, 1, 2, 2, 2, 1, 0, 0, 1, 2, 0, 1])
    seen = (owner == of_token[:, None]) & (rng.random((12, 150)) < 0.9)
    seen[np.arange(12), rng.integers(0, 150, 12)] = True
    found, expected = attend(name, q, k, v, seen), exactly(q, k, v, seen)
    assert found is not None
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
    # infinities and NaN in the cells of other conversations change no bit
    for token in range(12):
        k2, v2 = k.copy(), v.copy()
        k2[~seen[token]], v2[~seen[token]] = np.nan, np.inf
        other = attend(name, q[:, token : token + 1], k2, v2, seen[token : token + 1])
        assert other is not None
        np.testing.assert_array_equal(other[0], found[token])


@each_set
def test_neither_chunks_nor_the_places_of_cells_change_a_token(name: str) -> None:
    rng = np.random.default_rng(2)
    q, k, v = problem(rng, 130, 200, 8, 2, 64)
    whole = attend(name, q, k, v, causal(130, 200))
    assert whole is not None
    for size in (1, 2, 7, 16, 64, 129):
        for at in range(0, 130, size):
            piece = slice(at, min(at + size, 130))
            part = attend(name, q[:, piece], k, v, causal(130, 200)[piece])
            np.testing.assert_array_equal(part, whole[piece])
    places = np.sort(rng.choice(500, 200, replace=False))
    spread = [np.full((500, 2, 64), 7, np.float16) for _ in range(2)]
    spread[0][places], spread[1][places] = k, v
    seen = np.zeros((130, 500), bool)
    seen[:, places] = causal(130, 200)
    np.testing.assert_array_equal(attend(name, q, *spread, seen), whole)


@each_set
def test_large_products_overflow_nothing(name: str) -> None:
    rng = np.random.default_rng(3)
    for factor in (1e-4, 30.0, 3e3, 3e34):
        q, k, v = problem(rng, 4, 64, 4, 2, 64)
        seen = causal(4, 64)
        found = attend(name, (q * factor).astype(np.float32), k, v, seen)
        expected = exactly((q * factor).astype(np.float32), k, v, seen)
        assert found is not None
        # the rounding error of the weights grows with the products: 2^-24 of them
        tolerance = TOLERANCE * max(1, factor) if factor < 1e4 else 3.0
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@each_set
def test_unsupported_attention_is_declined(name: str) -> None:
    rng = np.random.default_rng(4)
    q, k, v = problem(rng, 4, 64, 4, 2, 64)
    assert attend(name, q, k, v, np.where(causal(4, 64), 0, -1).astype(np.float16)) is None  # a bias, not a mask
    nothing = causal(4, 64)
    nothing[2] = False
    assert attend(name, q, k, v, nothing) is None  # a token that sees nothing
    for size in (48, 256):
        assert attend(name, *problem(rng, 4, 64, 4, 2, size), causal(4, 64)) is None
    assert attend(name, *problem(rng, 4, 64, 3, 2, 64), causal(4, 64)) is None
