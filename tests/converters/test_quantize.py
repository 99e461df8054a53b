"""Our one-pass conversion against llama.cpp's quantizer fed with our F32 GGUF: same types, same bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from make_checkpoint import Edits, Shape, make_checkpoint

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder import quantize
from bimedix_edge.converters.decoder.quantize import FILE_TYPES, file_type_named
from bimedix_edge.errors import CheckpointError, UsageError

# shapes that take different paths in llama.cpp's recipe
SHAPES = {
    "deep": Shape(n_layer=11, n_ff=256, head_dim=32),  # first eighth, last eighth, every third
    "heads_shared_by_four": Shape(n_head=4, n_head_kv=1, n_layer=3, n_ff=256),
    "rows_of_32_blocks": Shape(n_embd=288, n_head=4, n_head_kv=2, n_ff=320, n_layer=2, head_dim=64),
    "rows_of_no_block": Shape(n_embd=256, n_ff=272, n_layer=2),
    "tied": Shape(tied=True, n_layer=1),
    "seventy_billion": Shape(n_layer=80, n_embd=256, n_ff=64, n_head=4, n_head_kv=2, head_dim=16),
}
QUANTIZED = [name for name in FILE_TYPES if name != "F32"]
CASES = [("deep", kind) for kind in QUANTIZED]
CASES += [("rows_of_32_blocks", kind) for kind in QUANTIZED if kind not in ("F16", "BF16")]
CASES += [("rows_of_no_block", kind) for kind in ("Q8_0", "Q4_0", "Q4_K_M", "Q6_K")]
CASES += [("heads_shared_by_four", kind) for kind in ("Q4_K_M", "IQ4_XS")]
CASES += [("tied", kind) for kind in ("F16", "Q8_0", "Q4_0", "Q4_K_M")]
CASES += [("seventy_billion", kind) for kind in ("Q4_K_M", "Q5_K_M", "Q4_K_S")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    directories = {name: make_checkpoint(root / name, shape=shape) for name, shape in SHAPES.items()}
    for name, directory in directories.items():
        convert(directory, root / f"{name}-f32", ConvertOptions(file_type="F32"))
    return directories


@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_equal_to_llama_cpp(shape: str, kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    convert(sources[shape], tmp_path / "ours", ConvertOptions(file_type=kind))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(FILE_TYPES[kind].number)
    f32 = sources[shape].with_name(f"{shape}-f32") / "decoder.gguf"
    assert llama_cpp.llama_model_quantize(str(f32).encode(), str(tmp_path / "theirs.gguf").encode(), params) == 0
    ours, theirs = gguf.GGUFReader(tmp_path / "ours/decoder.gguf"), gguf.GGUFReader(tmp_path / "theirs.gguf")
    assert _types(ours) == _types(theirs)
    expected = {tensor.name: tensor.data.tobytes() for tensor in theirs.tensors}
    for tensor in ours.tensors:
        assert tensor.data.tobytes() == expected[tensor.name], tensor.name
    assert _keys(ours) == _keys(theirs)


def test_equal_in_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "source", shape=Shape(n_layer=1))
    whole = convert(source, tmp_path / "whole", ConvertOptions(file_type="Q4_K_M"))
    monkeypatch.setattr("bimedix_edge.converters.decoder.quantize.JOB_VALUES", 700)
    assert convert(source, tmp_path / "blocks", ConvertOptions(file_type="Q4_K_M")).files == whole.files


def test_name_in_any_case() -> None:
    assert file_type_named("q4_k_m").name == "Q4_K_M"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"no type 'Q3_XXL'\. Choose one of F32, F16, BF16, Q8_0"):
        file_type_named("Q3_XXL")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "F16", "F32"])
def test_weight_that_is_not_finite_is_named(value: float, kind: str, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = value

    source = make_checkpoint(tmp_path / "source", edits=Edits(tensors=spoil))
    with pytest.raises(CheckpointError, match=r"^blk\.1\.ffn_up\.weight has NaN or infinity in rows 0"):
        convert(source, tmp_path / "out", ConvertOptions(file_type=kind))
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_weight_beyond_the_type_is_named(kind: str, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][7, 3] = 1e30

    source = make_checkpoint(tmp_path / "source", edits=Edits(tensors=spoil))
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight exceeds the range of \w+ in rows 0"):
        convert(source, tmp_path / "out", ConvertOptions(file_type=kind))


def _types(reader: gguf.GGUFReader) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def _keys(reader: gguf.GGUFReader) -> dict[str, object]:
    # the tensor count and the like are header fields that gguf-py lists as keys
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def _odd_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((64, 1024), np.float32)
    tiny = np.zeros((4, 1024), np.float32)
    tiny[0, ::2], tiny[1, 5], tiny[2, 7] = -0.0, 1e-38, 1e-42
    outliers = normal.copy()
    outliers[:, ::64] *= np.float32(1e5)
    return {
        **{f"scaled {scale}": normal * np.float32(scale) for scale in (1, 0.02, 1e-8, 1e-20, 1e4)},
        "heavy tails": rng.standard_t(2, (256, 1024)).astype(np.float32),
        "sparse": np.where(rng.random(normal.shape) < 0.9, 0, normal).astype(np.float32),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "constant blocks": np.repeat(normal[:, :32], 32, axis=1),
        "blocks of any size": normal * np.repeat(10.0 ** rng.uniform(-9, 3, (64, 32)), 32, axis=1).astype(np.float32),
        "outliers": outliers,
        "zeros and next to nothing": tiny,
        "whole numbers": rng.integers(-7, 8, (64, 1024)).astype(np.float32),
        "halves between two": (rng.integers(-255, 256, (64, 1024)) / 2).astype(np.float32),
    }


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0, Type.Q4_0], ids=lambda kind: kind.name)
def test_our_quantizer_writes_the_bytes_of_ggml(kind: Type) -> None:
    data = np.zeros(quantize.row_bytes(kind, 1024), np.uint8)
    if not quantize.quantize_natively(kind, np.zeros((1, 1024), np.float32), data):
        pytest.skip("this processor has no AVX2, so ggml quantizes")
    assert quantize.has_own_quantizer(kind)
    for name, rows in _odd_rows().items():
        values = np.ascontiguousarray(rows, np.float32)
        expected, found = (np.zeros(len(values) * quantize.row_bytes(kind, 1024), np.uint8) for _ in range(2))
        quantize.quantize_with_ggml(kind, values, expected)
        assert quantize.quantize_natively(kind, values, found)
        assert np.array_equal(found, expected), name


def test_a_ggml_that_rounds_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(kind: Type, values: np.ndarray, data: np.ndarray, weights: int | None = None) -> int:
        data[:] = 1
        return data.size

    quantize.has_own_quantizer.cache_clear()
    monkeypatch.setattr(quantize, "quantize_with_ggml", other)
    try:
        assert not quantize.has_own_quantizer(Type.Q4_K)
        rows = np.ones((1, 256), np.float32)
        source = quantize.RowSource("x", Type.Q4_K, lambda _start, _stop: rows)
        assert set(bytes(quantize.quantized_rows(source, 0, 1))) == {1}
    finally:
        quantize.has_own_quantizer.cache_clear()
