"""The measurements of a conversion, and the refusal of deliberate mistakes by --strict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint

from bimedix_edge.bundle import Quality, open_bundle, read_manifest
from bimedix_edge.converters.check.parity import TensorError
from bimedix_edge.converters.check.pictures import calibration_pictures
from bimedix_edge.converters.check.quality import LIMITS, check_limits
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder import gguf as decoder_gguf
from bimedix_edge.converters.decoder import quantize
from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.decoder.recipe import TENSOR_TYPES
from bimedix_edge.converters.job import job
from bimedix_edge.converters.vision import graph as vision_onnx
from bimedix_edge.errors import CheckpointError


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_type_passes_its_limit(file_type: str, checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(file_type=file_type, strict=True))
    base = FILE_TYPES[file_type].base.name
    assert base in manifest.quality.types
    assert sum(found.n_tensors for found in manifest.quality.types.values()) == 31
    for kind, found in manifest.quality.types.items():
        assert found.relative_rms <= LIMITS[kind]
        assert found.cosine > 0.985
    assert len(manifest.quality.worst) == 5
    assert manifest.quality.vision.cosine_min > 0.99999
    assert manifest.quality.vision.n_images == len(calibration_pictures())


def test_every_type_of_a_recipe_has_a_limit(checkpoint: Path, tmp_path: Path) -> None:
    assert LIMITS.keys() == TENSOR_TYPES.keys()
    names = iter(TENSOR_TYPES)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    lines = [
        f'"blk.{layer}.{part}.weight" = "{name}"' for layer in range(3) for part in parts if (name := next(names, ""))
    ]
    (tmp_path / "recipe.toml").write_text("\n".join(["[types]", *lines]))
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(recipe=tmp_path / "recipe.toml", strict=True))
    assert manifest.quality.types.keys() >= TENSOR_TYPES.keys()


def test_it_is_kept_and_read_back(checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest == manifest
    worst = list(manifest.quality.worst.values())
    assert max(found.relative_rms for found in worst) < LIMITS["Q4_K"]
    assert all(found.n_tensors == 1 for found in worst)


def test_a_bundle_of_an_older_version_still_opens(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    fields = json.loads(path.read_text())
    del fields["quality"]
    path.write_text(json.dumps(fields))
    assert read_manifest(tmp_path / "out").quality == Quality()


def not_permuted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder_gguf, "permuted_rows", lambda n_rows, _: np.arange(n_rows))


def swapped(patch: pytest.MonkeyPatch) -> None:
    swap = {"self_attn.q_proj": "self_attn.k_proj", "self_attn.k_proj": "self_attn.q_proj"}
    patch.setattr(
        decoder_gguf,
        "BLOCK_TENSORS",
        tuple((name, swap.get(source, source)) for name, source in decoder_gguf.BLOCK_TENSORS),
    )


def no_rope_freqs(patch: pytest.MonkeyPatch) -> None:
    declare = decoder_gguf.declare_decoder
    patch.setattr(job, "declare_decoder", lambda *given, **more: declare(*given, **more)[:-1])


def unscaled_rope(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder_gguf, "rope_factors", lambda config: np.ones(config.head_dim // 2, np.float32))


def mutated_recipe(patch: pytest.MonkeyPatch) -> None:
    """Write other types than declared, as a faulty writer would."""
    steps = decoder_gguf.tensor_steps

    def wrong(tensor: Any, checkpoint: Any) -> Any:
        kinds = {gguf.GGMLQuantizationType.Q4_K: gguf.GGMLQuantizationType.Q4_0}
        return steps(replace(tensor, kind=kinds.get(tensor.kind, tensor.kind)), checkpoint)

    patch.setattr(decoder_gguf, "tensor_steps", wrong)


def wrong_scale(patch: pytest.MonkeyPatch) -> None:
    """Compute every block of Q4_K for weights twice as large."""
    rows = quantize.quantized_rows

    def doubled(source: quantize.RowSource, start: int, stop: int) -> memoryview:
        factor = 2 if source.kind == gguf.GGMLQuantizationType.Q4_K else 1
        read = source.read
        return rows(replace(source, read=lambda start, stop: read(start, stop) * np.float32(factor)), start, stop)

    patch.setattr(decoder_gguf, "quantized_rows", doubled)


def transposed_projector(patch: pytest.MonkeyPatch) -> None:
    read = vision_onnx.TowerGraph.read_weight

    def turned(self: Any, name: str) -> Any:
        return read(self, name).T if name == "projector.2.weight" else read(self, name)

    patch.setattr(vision_onnx.TowerGraph, "read_weight", turned)


def another_gelu(patch: pytest.MonkeyPatch) -> None:
    def silu(tower: vision_onnx.TowerGraph, name: str, hidden: str) -> str:
        return tower.graph.add("Mul", name, [hidden, tower.graph.add("Sigmoid", f"{name}.gate", [hidden])])

    patch.setattr(vision_onnx.TowerGraph, "gelu", silu)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (not_permuted, r"attn_[qk]\.weight \(Q4_K\) has a relative error of 1\."),
        (swapped, r"attn_[qk]\.weight \(Q4_K\) has a relative error of 1\."),
        (no_rope_freqs, r"differs from the checkpoint in rope_freqs\.weight"),
        (unscaled_rope, r"rope_freqs\.weight \(F32\) has a relative error of 0\."),
        (mutated_recipe, r"\(Q4_K\) has (a relative error of|NaN or infinity)"),
        (wrong_scale, r"\(Q4_K\) has a relative error of 1"),
        (transposed_projector, r"an image token has the cosine -?0\.\d+, below 0\.99999"),
        (another_gelu, r"an image token has the cosine 0\.\d+, below 0\.99999"),
    ],
)
def test_each_mistake_on_purpose_is_refused(
    mistake: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "source", shape=Shape(n_head_kv=4))
    convert(source, tmp_path / "right", ConvertOptions(strict=True))
    with monkeypatch.context() as patch:
        mistake(patch)
        with pytest.raises(CheckpointError, match=message):
            convert(source, tmp_path / "wrong", ConvertOptions(strict=True, fresh=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right", "source"]


def test_a_type_that_was_not_declared_is_refused_without_strict(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = "bimedix_edge.converters.convert.measure_decoder"
    from bimedix_edge.converters.check.quality import measure_decoder

    def other(path: Path, source: Any, planned: Any, progress: Any) -> Any:
        q8 = [
            replace(tensor, kind=gguf.GGMLQuantizationType.Q8_0) for tensor in planned if tensor.name == "output.weight"
        ]
        return measure_decoder(path, source, [t for t in planned if t.name != "output.weight"] + q8, progress)

    monkeypatch.setattr(measure, other)
    with pytest.raises(CheckpointError, match=r"output\.weight is Q6_K instead of Q8_0"):
        convert(checkpoint, tmp_path / "out")


def test_the_worst_are_named_first() -> None:
    errors = [TensorError(f"t{index}", "Q8_0", 1, index / 10, 1.0, 0.0) for index in range(8)]
    good = Quality().vision
    with pytest.raises(CheckpointError, match=r"cosine 0\.000000, below.*t7 .*t6 .*t5 .*t4 .*; and 3 more\. Nothing"):
        check_limits(errors, good, "int8")


def test_pictures_are_the_same_every_time() -> None:
    first, second = calibration_pictures(), calibration_pictures()
    for left, right in zip(first, second, strict=True):
        assert left.dtype == np.uint8
        assert left.ndim == 3
        assert np.array_equal(left, right)
        assert 20 < left.std() < 128
    assert len({picture.shape[0] > picture.shape[1] for picture in first}) == 2
