"""The image encoder's operators in a session of ONNX Runtime: numpy and ONNX Runtime's own operators judge them."""

from __future__ import annotations

import concurrent.futures
import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bimedix_edge.converters.vision.functions import (
    ATTENTION,
    DOMAIN,
    LINEAR,
    LINEAR_ADD,
    LINEAR_SILU,
    has_heads,
    is_layer,
    vision_functions,
)
from bimedix_edge.native import find_library
from bimedix_edge.vision.kernels import STEM, choose_vision_kernels

NAMES = ("avx512vnni", "avx512bf16", "amx")
Floats = NDArray[np.float32]


def library() -> tuple[Path, ctypes.CDLL]:
    path = find_library(STEM)
    assert path is not None, "the package was installed without its image encoder's kernels"
    return path, ctypes.CDLL(str(path))


def chosen(name: str) -> bool:
    message = ctypes.create_string_buffer(300)
    return bool(library()[1].bimedix_edge_vision_choose(name.encode(), message, 300) == 0)


def session(model: onnx.ModelProto, name: str | None, n_threads: int = 2) -> onnxruntime.InferenceSession:
    """Open a model with some kernels, or with ONNX Runtime's own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    if name is not None:
        assert chosen(name)
        options.register_custom_ops_library(str(library()[0]))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def graph(
    kind: str,
    inputs: dict[str, tuple[Any, ...]],
    width: int,
    constants: dict[str, NDArray[Any]],
    *,
    check: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    names = {LINEAR_ADD: ["x", "weight", "scale", "bias", "residual"], ATTENTION: ["q", "k", "v"]}
    node = helper.make_node(kind, names.get(kind, ["x", "weight", "scale", "bias"]), ["y"], domain=DOMAIN, **attributes)
    ends = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("tokens", width))
    weights = [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "one", ends, [result], weights),
        opset_imports=imports,
        ir_version=8,
        functions=vision_functions(17),
    )
    if check:
        onnx.checker.check_model(model, full_check=True)
    return model


def linear_graph(kind: str, weight: NDArray[np.int8], scale: Floats, bias: Floats) -> onnx.ModelProto:
    n_in, n_out = weight.shape
    inputs = {"x": ("tokens", n_in)} | ({"residual": ("tokens", n_out)} if kind == LINEAR_ADD else {})
    constants = {"weight": weight, "scale": scale, "bias": bias}
    return graph(kind, inputs, n_out, constants)


def layer(rng: np.random.Generator, n_in: int, n_out: int) -> tuple[NDArray[np.int8], Floats, Floats]:
    weight = rng.integers(-127, 128, (n_in, n_out), np.int8)
    scale = (rng.uniform(0.5, 1.5, n_out) / 127 / n_in**0.5).astype(np.float32)
    return weight, scale, rng.standard_normal(n_out).astype(np.float32)


def rounded(x: Floats) -> tuple[NDArray[np.float64], float]:
    """Return x as DynamicQuantizeLinear rounds it, less its zero point, and the scale."""
    scale = np.float32((max(x.max(), 0) - min(x.min(), 0)) / np.float32(255))
    zero = np.rint(-min(x.min(), 0) / scale)
    return np.clip(np.rint(x * (np.float32(1) / scale)) + zero, 0, 255).astype(np.float64) - zero, float(scale)


def linear_exactly(kind: str, x: Floats, *arrays: NDArray[Any]) -> Any:
    """Return a layer of x in float64; `arrays` are its weight in int8, scale and bias, and the residual."""
    weight, scale, bias, residual = arrays
    integers, x_scale = rounded(x)
    y: NDArray[np.float64] = integers @ weight.astype(np.float64) * x_scale * scale + bias
    if kind == LINEAR_SILU:
        y = y / (1 + np.exp(-y))
    return y + residual if kind == LINEAR_ADD else y


def attention_exactly(q: Floats, k: Floats, v: Floats, n_heads: int) -> NDArray[np.float64]:
    heads = [each.reshape(len(each), n_heads, -1).transpose(1, 0, 2).astype(np.float64) for each in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(0, 2, 1) / heads[0].shape[2] ** 0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    context = weights / weights.sum(-1, keepdims=True) @ heads[2]
    merged: NDArray[np.float64] = context.transpose(1, 0, 2).reshape(q.shape)
    return merged


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if not chosen(request.param):
        pytest.skip(f"this processor or this build cannot run {request.param}")
    return str(request.param)


@pytest.fixture
def halves(name: str) -> str:
    if name == "avx512vnni":
        pytest.skip("it leaves attention to ONNX Runtime")
    return name


SMALL_LAYERS, LARGE_LAYERS = ((64, 64), (128, 192), (192, 320)), ((1024, 64), (1152, 576), (64, 2048))
SOME_TOKENS, ALL_TOKENS = (0, 1, 33, 577), (0, 1, 5, 16, 17, 31, 33, 60, 161, 577)


@pytest.mark.parametrize("kind", [LINEAR, LINEAR_SILU, LINEAR_ADD])
def test_a_layer_is_its_definition(kind: str, name: str) -> None:
    check_layers(kind, name, SMALL_LAYERS, ALL_TOKENS)
    check_layers(kind, name, LARGE_LAYERS, SOME_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LINEAR, LINEAR_SILU, LINEAR_ADD])
def test_a_large_layer_is_its_definition_for_all_numbers_of_tokens(kind: str, name: str) -> None:
    check_layers(kind, name, LARGE_LAYERS, ALL_TOKENS)


def check_layers(kind: str, name: str, shapes: Iterable[tuple[int, int]], all_tokens: Iterable[int]) -> None:
    rng = np.random.default_rng(0)
    for n_in, n_out in shapes:
        parts = layer(rng, n_in, n_out)
        runner = session(linear_graph(kind, *parts), name)
        for n_tokens in all_tokens:
            x = (rng.standard_normal((n_tokens, n_in)) * 3 + rng.uniform(-2, 2)).astype(np.float32)
            residual = rng.standard_normal((n_tokens, n_out)).astype(np.float32)
            (found,) = runner.run(None, {"x": x} | ({"residual": residual} if kind == LINEAR_ADD else {}))
            assert found.shape == (n_tokens, n_out)
            if n_tokens:
                expected = linear_exactly(kind, x, *parts, residual)
                assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), (n_in, n_out, n_tokens)


@pytest.mark.parametrize("kind", [LINEAR, LINEAR_SILU, LINEAR_ADD])
def test_the_definition_computes_the_same_without_kernels(kind: str) -> None:
    rng = np.random.default_rng(2)
    parts = layer(rng, 128, 192)
    x, residual = (rng.standard_normal((33, width)).astype(np.float32) for width in (128, 192))
    feed = {"x": x} | ({"residual": residual} if kind == LINEAR_ADD else {})
    (found,) = session(linear_graph(kind, *parts), None).run(None, feed)
    expected = linear_exactly(kind, x, *parts, residual)
    # the definition divides x by the scale, numpy here multiplies by its inverse: a tie may round differently
    step = rounded(x)[1] * 127 * parts[1].max()
    assert np.abs(found - expected).max() < 3 * step
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("x", [np.zeros, np.ones, lambda shape: -np.ones(shape), lambda shape: np.full(shape, 1e-30)])
def test_activations_all_alike(x: Any, name: str) -> None:
    parts = layer(np.random.default_rng(3), 64, 64)
    values = x((5, 64)).astype(np.float32)
    (found,) = session(linear_graph(LINEAR, *parts), name).run(None, {"x": values})
    weight, scale, bias = parts
    expected = values.astype(np.float64) @ weight * scale + bias
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_silu_of_large_numbers(name: str) -> None:
    weight, scale = np.ones((64, 64), np.int8), np.ones(64, np.float32)
    bias = np.linspace(-200, 200, 64).astype(np.float32)
    bias[:4] = -1e30, -3e38, 1e30, 3e38
    (found,) = session(linear_graph(LINEAR_SILU, weight, scale, bias), name).run(
        None, {"x": np.zeros((1, 64), np.float32)}
    )
    expected = bias / (1 + np.exp(-np.maximum(bias, -700).astype(np.float64)))
    np.testing.assert_allclose(found[0], np.where(bias < -700, 0, expected), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_not_hidden(bad: float, name: str) -> None:
    """The encoder refuses embeddings that are not finite, so no operator may turn NaN or infinity into a number."""
    rng = np.random.default_rng(4)
    parts = layer(rng, 64, 64)
    x = rng.standard_normal((70, 64)).astype(np.float32)
    x[40, 3] = bad
    for kind in (LINEAR, LINEAR_SILU, LINEAR_ADD):
        feed = {"x": x} | ({"residual": np.zeros_like(x)} if kind == LINEAR_ADD else {})
        (found,) = session(linear_graph(kind, *parts), name).run(None, feed)
        assert np.isnan(found).all()
    if name != "avx512vnni":
        runner = session(graph(ATTENTION, dict.fromkeys("qkv", ("tokens", 64)), 64, {}, num_heads=1), name)
        # a key of minus infinity gets no weight
        for place in "qv" if bad == -np.inf else "qkv":
            feed = {key: x if key == place else np.ones_like(x) for key in "qkv"}
            assert not np.isfinite(runner.run(None, feed)[0]).all()


def test_results_do_not_depend_on_threads(name: str) -> None:
    rng = np.random.default_rng(5)
    parts = layer(rng, 192, 576)
    x = rng.standard_normal((577, 192)).astype(np.float32)
    model = linear_graph(LINEAR_SILU, *parts)
    (expected,) = session(model, name, 1).run(None, {"x": x})
    for n_threads in (2, 3, 8):
        np.testing.assert_array_equal(session(model, name, n_threads).run(None, {"x": x})[0], expected)
    # several runs of one session at once
    runner = session(model, name)
    others = [x * factor for factor in np.linspace(0.5, 1.5, 40, dtype=np.float32)]
    alone = [runner.run(None, {"x": other})[0] for other in others]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda other: runner.run(None, {"x": other})[0], others)
    for found, one in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, one)


def test_attention_of_several_threads_and_large_scores(halves: str) -> None:
    rng = np.random.default_rng(6)
    model = graph(ATTENTION, dict.fromkeys("qkv", ("tokens", 192)), 192, {}, num_heads=3)
    q, k, v = (rng.standard_normal((577, 192)).astype(np.float32) for _ in "qkv")
    (expected,) = session(model, halves, 1).run(None, {"q": q, "k": k, "v": v})
    np.testing.assert_array_equal(session(model, halves, 3).run(None, {"q": q, "k": k, "v": v})[0], expected)
    # one key outweighs all others by far, so attention returns its value
    one_hot = np.zeros_like(k)
    one_hot[7] = 1
    (found,) = session(model, halves).run(None, {"q": np.full_like(q, 1e4), "k": one_hot, "v": v})
    np.testing.assert_allclose(found, np.broadcast_to(v[7], v.shape), rtol=0.005)
    # all keys are equal, so attention returns the mean of all values
    (found,) = session(model, halves).run(None, {"q": q * 1e4, "k": np.ones_like(k), "v": v})
    np.testing.assert_allclose(found, np.broadcast_to(v.mean(axis=0), v.shape), atol=2e-3)


def test_a_graph_that_does_not_fit_is_refused(name: str) -> None:
    weight, scale, bias = layer(np.random.default_rng(7), 64, 64)
    x = np.zeros((3, 64), np.float32)
    constants = {"weight": weight, "scale": scale, "bias": bias}
    for change, width, words in (
        ({"weight": weight.ravel()}, 64, "expected weights"),
        ({"weight": weight[:60]}, 60, "expected weights"),
        ({"weight": weight[:, :60]}, 64, "expected weights"),
        ({"weight": weight[:, :0]}, 64, "expected weights"),
        ({"weight": weight[:0]}, 64, "expected weights"),
        ({"scale": scale[:32]}, 64, "expected x"),
        ({"bias": bias[:32]}, 64, "expected x"),
        ({}, 32, "expected x"),
    ):
        model = graph(LINEAR, {"x": ("tokens", "width")}, 64, constants | change, check=False)
        with pytest.raises(Exception, match=words):
            session(model, name).run(None, {"x": x[:, :width]})
    model = graph(LINEAR_ADD, {"x": ("tokens", 64), "residual": ("tokens", "width")}, 64, constants)
    with pytest.raises(Exception, match="expected a residual"):
        session(model, name).run(None, {"x": x, "residual": x[:, :32]})
    if name != "avx512vnni":
        for width, heads in ((48, 1), (256, 1), (64, 3), (0, 1)):
            model = graph(ATTENTION, dict.fromkeys("qkv", ("tokens", width)), width, {}, num_heads=heads)
            values = np.zeros((3, width), np.float32)
            with pytest.raises(Exception, match="expected heads of"):
                session(model, name).run(None, dict.fromkeys("qkv", values))


def test_the_converter_uses_the_operators_for_sizes_they_support() -> None:
    sizes = ((64, 64), (4096, 1024), (32, 64), (64, 96), (65600, 64))
    assert [is_layer(*shape) for shape in sizes] == [True, True, False, False, False]
    shapes = ((1024, 16), (64, 2), (256, 2), (512, 2), (96, 2), (64, 3))
    assert [has_heads(*shape) for shape in shapes] == [True, True, True, False, False, False]


def test_a_session_keeps_the_kernels_it_was_registered_with(name: str) -> None:
    rng = np.random.default_rng(8)
    parts = layer(rng, 128, 128)
    x = rng.standard_normal((33, 128)).astype(np.float32)
    model = linear_graph(LINEAR, *parts)
    expected = session(model, name).run(None, {"x": x})[0]
    options = onnxruntime.SessionOptions()
    assert chosen(name)
    options.register_custom_ops_library(str(library()[0]))
    for other in NAMES:
        chosen(other)
    late = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(late.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize(
    ("choice", "reason"), [("off", "switched off"), ("avx2", "there are none for avx2"), ("avxvnni", "for avxvnni")]
)
def test_other_choices_leave_the_operators_out(choice: str, reason: str) -> None:
    found = choose_vision_kernels(choice)
    assert (found.name, found.library) == (None, None)
    assert reason in found.reason


def test_the_best_is_chosen() -> None:
    able = [name for name in NAMES if chosen(name)]
    if "avx512vnni" not in able:
        pytest.skip("this processor has none of them")
    best, vectors = choose_vision_kernels("auto"), choose_vision_kernels("avx512vnni")
    assert best.name == "amx" if "amx" in able else best.name == vectors.name
    assert vectors.name in ("avx512bf16", "avx512vnni")
    assert vectors.name in able
    assert best.library == library()[0]
    assert choose_vision_kernels("amx").name == ("amx" if "amx" in able else None)


def test_a_damaged_library_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library()[0]
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes()[:-1] + b"x")
    copy.with_name(f"{copy.name}.sha256").write_text(path.with_name(f"{path.name}.sha256").read_text("ascii"), "ascii")
    monkeypatch.setattr("bimedix_edge.native.find_library", lambda stem: copy)
    assert "is damaged; install the package again" in choose_vision_kernels("auto").reason
    monkeypatch.setattr("bimedix_edge.native.find_library", lambda stem: None)
    assert "the library is missing" in choose_vision_kernels("auto").reason


def check_attention(halves: str, head_size: int, all_heads: tuple[int, ...], all_tokens: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    for n_heads in all_heads:
        width = n_heads * head_size
        model = graph(ATTENTION, dict.fromkeys("qkv", ("tokens", width)), width, {}, num_heads=n_heads)
        ours, theirs = session(model, halves), session(model, None)
        for n_tokens in all_tokens:
            q, k, v = (rng.standard_normal((n_tokens, width)).astype(np.float32) for _ in "qkv")
            feed = {"q": 3 * q, "k": k, "v": v}
            (found,), (stock,) = ours.run(None, feed), theirs.run(None, feed)
            expected = attention_exactly(3 * q, k, v, n_heads)
            assert np.abs(stock - expected).max() < 1e-5 * np.abs(expected).max()
            # the kernels round queries, keys, values and weights to eight bits
            assert np.linalg.norm(found - expected) < 0.006 * np.linalg.norm(expected), (n_heads, n_tokens)
            assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max(), (n_heads, n_tokens)


@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
def test_attention_is_its_definition(head_size: int, halves: str) -> None:
    check_attention(halves, head_size, (1, 3), (1, 3, 16, 31, 33, 45, 64, 90, 257))


def test_attention_of_a_whole_image_is_its_definition(halves: str) -> None:
    # 577 tokens in 16 heads of 64: the published image encoder
    check_attention(halves, 64, (16,), (577,))


@pytest.mark.slow
@pytest.mark.parametrize("head_size", [32, 64, 96, 128])
def test_attention_of_every_number_of_heads_is_its_definition(head_size: int, halves: str) -> None:
    check_attention(halves, head_size, (1, 3, 16), (1, 3, 16, 31, 33, 45, 64, 90, 257, 577))
