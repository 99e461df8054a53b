"""The user's recipes: their effect, and wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import pytest
from llama_quantizer import quantized_by_llama_cpp
from make_checkpoint import Shape, make_checkpoint

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder.recipe import read_recipe
from bimedix_edge.errors import UsageError

RECIPE = """
[types]
"blk.0.ffn_down.weight" = "q8_0"
"blk.*.ffn_down.weight" = "Q5_0"
"blk.*.attn_[qk].weight" = "Q3_K"
"output.weight" = "F16"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_first_match_wins_and_the_rest_keeps_its_type(checkpoint: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.toml", RECIPE)
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q4_K_M", recipe=recipe))
    convert(checkpoint, tmp_path / "plain", ConvertOptions(file_type="Q4_K_M"))
    types, plain = (_types(tmp_path / name / "decoder.gguf") for name in ("out", "plain"))
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.1.ffn_down.weight"] == types["blk.2.ffn_down.weight"] == "Q5_0"
    assert {types[f"blk.{layer}.attn_{part}.weight"] for layer in range(3) for part in "qk"} == {"Q3_K"}
    assert types["output.weight"] == "F16"
    untouched = [name for name in types if not re.search(r"ffn_down|attn_[qk]\.|output\.weight", name)]
    assert {name: types[name] for name in untouched} == {name: plain[name] for name in untouched}
    assert len(manifest.source["sha256:recipe"]) == 64


def test_bytes_equal_llama_cpp_with_the_same_overrides(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", shape=Shape(n_layer=2))
    recipe = write(
        tmp_path / "recipe.toml", '[types]\n"blk.*.ffn_down.weight" = "Q5_1"\n"blk.1.attn_v.weight" = "Q2_K"\n'
    )
    convert(source, tmp_path / "ours", ConvertOptions(file_type="Q4_K_M", recipe=recipe))
    convert(source, tmp_path / "f32", ConvertOptions(file_type="F32"))
    overrides = {r"blk\..*\.ffn_down\.weight": "Q5_1", r"blk\.1\.attn_v\.weight": "Q2_K"}
    theirs = quantized_by_llama_cpp(tmp_path / "f32/decoder.gguf", tmp_path / "theirs.gguf", "Q4_K_M", types=overrides)
    expected = {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in theirs.tensors}
    for tensor in gguf.GGUFReader(tmp_path / "ours/decoder.gguf").tensors:
        assert (tensor.tensor_type, tensor.data.tobytes()) == expected[tensor.name], tensor.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[types]\n"blk.*.ffn_dwn.weight" = "Q6_K"', r"'blk\.\*\.ffn_dwn\.weight' match no matrix"),
        (
            '[types]\n"*" = "Q8_0"\n"output.weight" = "Q6_K"',
            r"'output\.weight' match no matrix, or only those of an earlier",
        ),
        ('[types]\n"output_norm.weight" = "Q8_0"', r"'output_norm\.weight' match no matrix"),
        ('[types]\n"*" = "Q4_K_M"', r"the unknown type 'Q4_K_M'\. Choose one of F32, F16"),
        ('[types]\n"*" = 8', "the unknown type '8'"),
        ("[types]", "one table"),
        ('[type]\n"*" = "Q8_0"', "one table"),
        ('[types]\n"*" = "Q8_0"\n[more]', "one table"),
        ("types = 3", "one table"),
        ("=", "is not valid TOML"),
        ('[types]\n"*" = "Q8_0"\n"*" = "Q6_K"', "is not valid TOML"),
    ],
)
def test_bad_recipe(text: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.toml", text)
    with pytest.raises(UsageError, match=message):
        convert(checkpoint, tmp_path / "out", ConvertOptions(recipe=recipe))
    assert list(tmp_path.iterdir()) == [recipe]


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", shape=Shape(n_layer=1, n_ff=288))
    recipe = write(tmp_path / "recipe.toml", '[types]\n"blk.*" = "Q6_K"')
    with pytest.raises(
        UsageError, match=r"Q6_K needs rows that are a multiple of 256, but blk\.0\.ffn_down\.weight, .* rows of 288"
    ):
        convert(source, tmp_path / "out", ConvertOptions(recipe=recipe))


def test_no_recipe_and_a_long_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The recipe .* cannot be read"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="bytes, more than"):
        read_recipe(write(tmp_path / "long.toml", "#" * (2 << 20)))


def _types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
