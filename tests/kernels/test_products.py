"""Products of the kernels: numpy judges the scalar version, which judges each instruction set this machine runs."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from native_products import (
    INSTRUCTION_SETS,
    KINDS,
    Weights,
    ggml_multiply,
    library,
    multiply,
    place,
    quantized,
    random_rows,
    random_weights,
    usable,
)
from numpy.typing import NDArray

# for sums of float32 in another order; the error of rounded activations is a thousand times larger
TOLERANCE = 3e-6
# a panel has 8, 16, 32, 64 or 128 rows
ROWS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 129)
# around the numbers where the kernels change their loops: 4 and 8 tokens by rows, 4 or 6 at a time over a
# panel, tiles of 16 and of twice 16
TOKENS = (*range(1, 19), 31, 32, 33, 47, 48, 49, 64)
COLUMNS = {"Q4_K": (256, 768, 2048), "Q5_K": (256, 512), "Q6_K": (256, 1280)}
COLUMNS |= {"Q8_0": (32, 96, 288, 1024), "Q4_0": (32, 96, 288, 512), "F16": (32, 160, 544)}
SPECIAL = {"infinity": 0x7C00, "minus infinity": 0xFC00, "NaN": 0x7E00, "negative NaN": 0xFFFF}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_set = pytest.mark.parametrize("name", INSTRUCTION_SETS)


@pytest.fixture(autouse=True)
def runs_here(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params.get("name", "scalar") if hasattr(request.node, "callspec") else "scalar"
    if not usable(name):
        pytest.skip(f"this processor cannot run {name}")


def activations(n_tokens: int, n_columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal((n_tokens, n_columns)).astype(np.float32)


def rounded(kind: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return activations rounded as in ggml's formats Q8_K and Q8_0, but with the scale of Q8_0 in float32."""
    if kind == "F16":
        return x.astype(np.float64)
    size = 256 if kind.endswith("K") else 32
    blocks = x.reshape(len(x), -1, size)
    place_of_largest = np.abs(blocks).argmax(-1, keepdims=True)
    largest = np.take_along_axis(blocks, place_of_largest, -1)
    if size == 256:
        inverse = np.float32(-127) / largest
        scale = 1 / inverse
    else:
        scale = np.abs(largest) / np.float32(127)
        inverse = 1 / scale
    values = np.minimum(np.rint(blocks * inverse), 127)
    result: NDArray[np.float64] = (values.astype(np.float64) * scale).reshape(x.shape)
    return result


def error(y: NDArray[np.float32], expected: NDArray[np.floating]) -> float:
    """Return the largest error of a token, relative to its norm or to a tenth of the mean norm, the larger of them."""
    difference = np.linalg.norm(y.astype(np.float64) - expected, axis=-1)
    length = np.linalg.norm(expected.astype(np.float64), axis=-1)
    return float((difference / np.maximum(length, length.mean() / 10 + 1e-30)).max())


@each_kind
@pytest.mark.parametrize(("n_rows", "n_tokens"), [(33, 5), (8, 1), (1, 13)])
def test_the_scalar_version_is_what_numpy_computes(kind: str, n_rows: int, n_tokens: int) -> None:
    rng = np.random.default_rng([n_rows, n_tokens])
    for n_columns in COLUMNS[kind]:
        weights, x = random_weights(kind, n_rows, n_columns, rng), activations(n_tokens, n_columns, rng)
        exact, given = weights.dense(), rounded(kind, x)
        difference = np.abs(multiply("scalar", weights, x) - given @ exact.T)
        # relative to the sum of magnitudes, since a sum may cancel
        assert (difference / (np.abs(given) @ np.abs(exact).T)).max() < 1e-6


_Case = tuple[Weights, NDArray[np.float32], NDArray[np.float32]]


@functools.cache
def _case(
    kind: str, n_rows: int, n_tokens: int, n_columns: int
) -> tuple[Weights, NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng([n_rows, n_tokens, n_columns])
    weights, x = random_weights(kind, n_rows, n_columns, rng), activations(n_tokens, n_columns, rng)
    return weights, x, multiply("scalar", weights, x, n_threads=2)


@each_set
@each_kind
def test_every_number_of_rows(name: str, kind: str) -> None:
    for n_rows in ROWS:
        for n_tokens in (1, 4, 5, 7, 17):
            weights, x, expected = _case(kind, n_rows, n_tokens, COLUMNS[kind][1])
            assert error(multiply(name, weights, x), expected) < TOLERANCE, (n_rows, n_tokens)


@each_set
@each_kind
def test_every_number_of_tokens(name: str, kind: str) -> None:
    for n_tokens in TOKENS:
        weights, x, expected = _case(kind, 35, n_tokens, COLUMNS[kind][0])
        assert error(multiply(name, weights, x, n_threads=2), expected) < TOLERANCE, n_tokens


@each_set
@each_kind
@pytest.mark.parametrize("n_tokens", [511, 512, 513, 600])
def test_more_tokens_than_one_pass_takes(name: str, kind: str, n_tokens: int) -> None:
    weights, x, expected = _case(kind, 37, n_tokens, COLUMNS[kind][1])
    assert error(multiply(name, weights, x, n_threads=2), expected) < TOLERANCE


@each_set
@each_kind
def test_every_number_of_columns(name: str, kind: str) -> None:
    for n_columns in COLUMNS[kind]:
        for n_tokens in (2, 11, 20):
            weights, x, expected = _case(kind, 33, n_tokens, n_columns)
            assert error(multiply(name, weights, x), expected) < TOLERANCE, (n_columns, n_tokens)


@each_set
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_shape_at_any_address(name: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    unit = max(32, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])
    n_columns = unit * data.draw(st.integers(1, 1024 // unit))
    n_rows, n_tokens = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    # all formats are aligned to two bytes
    gap, offset = 2 * data.draw(st.integers(0, 40)), 2 * data.draw(st.integers(0, 31))
    weights = place(kind, random_rows(kind, n_rows, n_columns, rng), gap=gap, offset=offset)
    x = activations(n_tokens, n_columns, rng)
    n_threads, shift = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 15))
    expected = multiply("scalar", weights, x)
    # with few rows, all results of a token may cancel to almost zero
    tolerance = TOLERANCE * (1 + 4 / n_rows**0.5)
    assert error(multiply(name, weights, x, n_threads=n_threads, shift=shift), expected) < tolerance


@each_set
@each_kind
def test_threads_change_nothing(name: str, kind: str) -> None:
    weights, x, _ = _case(kind, 100, 7, COLUMNS[kind][0])
    alone = multiply(name, weights, x)
    for n_threads in (2, 3, 4, 7):
        np.testing.assert_array_equal(multiply(name, weights, x, n_threads=n_threads), alone)


@each_kind
@pytest.mark.parametrize("name", ["scalar", *INSTRUCTION_SETS])
@pytest.mark.parametrize("n_tokens", [1, 9])
def test_zeros(name: str, kind: str, n_tokens: int) -> None:
    rng = np.random.default_rng(1)
    n_columns = COLUMNS[kind][1]
    weights, x = random_weights(kind, 33, n_columns, rng), activations(n_tokens, n_columns, rng)
    nothing = place(kind, np.zeros_like(weights.rows))
    assert (multiply(name, nothing, x) == 0).all()
    assert (multiply(name, weights, np.zeros_like(x)) == 0).all()
    # zeros in some blocks of both
    rows, some = weights.rows.copy(), x.copy()
    rows[::3, : rows.shape[1] // len(COLUMNS[kind])] = 0
    some[:, : n_columns // 2] = 0
    weights = place(kind, rows)
    assert error(multiply(name, weights, some), multiply("scalar", weights, some)) < TOLERANCE


@each_set
@each_kind
@pytest.mark.parametrize("n_tokens", [1, 5, 8])
@pytest.mark.parametrize("special", SPECIAL)
def test_infinities_and_nan_stay_in_their_row(name: str, kind: str, n_tokens: int, special: str) -> None:
    rng = np.random.default_rng(2)
    n_columns = COLUMNS[kind][1]
    weights, x = random_weights(kind, 40, n_columns, rng), activations(n_tokens, n_columns, rng)
    rows = weights.rows.copy()
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    for row, at in ((0, 0), (17, 0), (33, 2 if kind in ("Q4_K", "Q5_K") else 0), (39, rows.shape[1] - size)):
        where = at + (208 if kind == "Q6_K" else 0)
        rows[row, where : where + 2] = np.array([SPECIAL[special]], "<u2").view(np.uint8)
    weights = place(kind, rows)
    y, expected = multiply(name, weights, x), multiply("scalar", weights, x)
    finite = np.isfinite(expected)
    # whether infinities cancel to NaN depends on the order of sums; the places of non-finite results do not
    np.testing.assert_array_equal(np.isfinite(y), finite)
    assert not finite[:, [0, 17, 33, 39]].any()
    assert finite.sum() == n_tokens * 36
    assert error(np.where(finite, y, 0), np.where(finite, expected, 0)) < TOLERANCE


@each_set
@each_kind
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38, 1e-44, -1e-38])
def test_extreme_activations_spoil_no_other_token(name: str, kind: str, value: float) -> None:
    rng = np.random.default_rng(3)
    n_columns = COLUMNS[kind][0]
    for n_tokens in (3, 9):
        weights, x = random_weights(kind, 20, n_columns, rng), activations(n_tokens, n_columns, rng)
        expected = multiply("scalar", weights, x)
        x[1] = value
        others = np.arange(n_tokens) != 1
        y = multiply(name, weights, x)
        assert error(y[others], expected[others]) < TOLERANCE
        if abs(value) < 1:
            assert np.abs(y[1]).max() < 1e-30


@pytest.mark.parametrize("name", ["avx512vnni"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "F16"])
def test_a_tokens_result_does_not_depend_on_the_batch(name: str, kind: str) -> None:
    rng = np.random.default_rng(5)
    for n_rows, n_columns in ((77, COLUMNS[kind][-1]), (16, COLUMNS[kind][0]), (5, 2048)):
        weights, x = random_weights(kind, n_rows, n_columns, rng), activations(64, n_columns, rng)
        together = multiply(name, weights, x)
        for n_tokens in TOKENS:
            alone = multiply(name, weights, x[:n_tokens], n_threads=2)
            np.testing.assert_array_equal(alone, together[:n_tokens], err_msg=f"{n_tokens} tokens of 64")


def _weights_and_activations(kind: str, data: str, n_tokens: int) -> tuple[Weights, NDArray[np.float32]]:
    rng = np.random.default_rng(4)
    dense = (rng.standard_normal((512, 1024)) * 0.02).astype(np.float32)
    x = activations(n_tokens, 1024, rng)
    if data == "outliers":  # in a few columns of the activations, and anywhere in the weights
        x[:, rng.integers(0, 1024, 6)] *= 40
        dense[rng.random(dense.shape) < 0.002] *= 12
    return quantized(kind, dense), x


@each_set
@each_kind
@pytest.mark.parametrize("data", ["normal", "outliers"])
@pytest.mark.parametrize("n_tokens", [1, 4, 64])
def test_no_less_exact_than_ggml(name: str, kind: str, data: str, n_tokens: int) -> None:
    weights, x = _weights_and_activations(kind, data, n_tokens)
    exact = x.astype(np.float64) @ weights.dense().T
    ours = np.linalg.norm(multiply(name, weights, x, n_threads=2) - exact)
    ggml = np.linalg.norm(ggml_multiply(weights, x) - exact)
    assert ours <= ggml * 1.001
    # ggml's error is small, so both are compared with the right product
    assert ggml < (0.05 if data == "outliers" else 0.02) * np.linalg.norm(exact)


def test_unsupported_products_are_declined() -> None:
    x, y, w = np.zeros((1, 512), np.float32), np.zeros(8, np.float32), np.zeros(4096, np.uint8)

    def status(name: str, kind: int, n_columns: int) -> int:
        result: int = library().bimedix_edge_kernels_multiply(
            name.encode(), kind, w.ctypes.data, 1024, 1, x.ctypes.data, 1, n_columns, y.ctypes.data, 1
        )
        return result

    assert status("neon", GGMLQuantizationType.F16, 32) == 1
    for name in ("scalar", *filter(usable, INSTRUCTION_SETS)):
        assert status(name, GGMLQuantizationType.F16, 32) == 0
        assert status(name, GGMLQuantizationType.F16, 40) == 1
        assert status(name, GGMLQuantizationType.Q8_0, 40) == 1
        assert status(name, GGMLQuantizationType.Q4_K, 256) == 0
        assert status(name, GGMLQuantizationType.Q4_K, 128) == 1
        assert status(name, GGMLQuantizationType.Q5_0, 256) == 1
        assert status(name, GGMLQuantizationType.Q8_0, 0) == 1
