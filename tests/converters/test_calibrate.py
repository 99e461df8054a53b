"""An importance matrix measured through llama.cpp, against the plain numpy model's activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from make_checkpoint import Edits, Shape, make_checkpoint

from bimedix_edge.converters.check import reference
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder import calibrate as calibrate_module
from bimedix_edge.converters.decoder.calibrate import calibrate
from bimedix_edge.converters.decoder.imatrix import read_imatrix
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.errors import CheckpointError, DecoderError, HardwareError, InputError

TEXT = "the ring in the 12th thing, a thin king <|eot_id|> الرئة "
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 40, encoding="utf-8")
    return path


def test_squares_of_what_each_matrix_is_multiplied_with(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Checkpoint(make_checkpoint(tmp_path / "source"))
    chunks: list[list[int]] = []
    evaluate = calibrate_module.Calibration.evaluate
    monkeypatch.setattr(
        calibrate_module.Calibration,
        "evaluate",
        lambda self, tokens: (chunks.append(list(tokens)), evaluate(self, tokens))[1],
    )
    n_tokens = calibrate(source, text, tmp_path / "imatrix.gguf")
    assert n_tokens == 512 * len(chunks) > 512
    found = read_imatrix(tmp_path / "imatrix.gguf")
    assert found.keys() == {f"blk.{layer}.{part}.weight" for layer in range(3) for part in PARTS}
    expected = _squares(source, chunks, monkeypatch)
    for layer in range(3):
        for part, name in PARTS.items():
            mean = expected[f"model.layers.{layer}.{name}"] / n_tokens
            np.testing.assert_allclose(found[f"blk.{layer}.{part}.weight"], mean, rtol=0.02)


def test_a_conversion_takes_it(text: Path, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    calibrate(Checkpoint(source), text, tmp_path / "imatrix.gguf")
    manifest = convert(source, tmp_path / "out", ConvertOptions(imatrix=tmp_path / "imatrix.gguf", strict=True))
    assert manifest.files["decoder"].sha256 != convert(source, tmp_path / "plain").files["decoder"].sha256
    first = (tmp_path / "imatrix.gguf").read_bytes()
    calibrate(Checkpoint(source), text, tmp_path / "imatrix.gguf")
    assert (tmp_path / "imatrix.gguf").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imatrix.gguf", "out", "plain", "source", "text.txt"]


def test_chunks_are_no_longer_than_the_model_was_trained_on(text: Path, tmp_path: Path) -> None:
    def short(config: dict[str, Any]) -> None:
        config["max_position_embeddings"] = 64

    source = Checkpoint(make_checkpoint(tmp_path / "source", shape=Shape(n_layer=1), edits=Edits(config=short)))
    n_tokens = calibrate(source, text, tmp_path / "imatrix.gguf")
    assert n_tokens % 64 == 0
    assert gguf.GGUFReader(tmp_path / "imatrix.gguf").fields["imatrix.chunk_size"].contents() == 64


def test_progress(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    calibrate(
        Checkpoint(checkpoint), text, tmp_path / "a", lambda *event: seen.setdefault(event[0], []).append(event[1:])
    )
    assert list(seen) == ["decoder", "calibrate"]
    assert all(events[-1][0] == events[-1][1] for events in seen.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 512 tokens"),
        (b"the ring " * 20, r"text\.txt is too short .* has \d+ tokens, and at least 512 tokens"),
        (b"ring \xff\xfe" * 2000, r"text\.txt is not UTF-8 \(byte 5\)"),
    ],
)
def test_text_that_is_no_use(data: bytes, message: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises(InputError, match=message):
        calibrate(Checkpoint(checkpoint), tmp_path / "text.txt", tmp_path / "imatrix.gguf")
    with pytest.raises(InputError, match=r"The text .*none\.txt cannot be read"):
        calibrate(Checkpoint(checkpoint), tmp_path / "none.txt", tmp_path / "imatrix.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_what_a_killed_run_left_is_removed(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    left = tmp_path / ".imatrix.gguf.calibration"
    left.mkdir()
    (left / "decoder.gguf").write_bytes(b"GGUF")
    calibrate(Checkpoint(checkpoint), text, tmp_path / "imatrix.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imatrix.gguf", "text.txt"]


def test_too_little_room(checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = calibrate_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(calibrate_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(HardwareError, match="too little room for the F16 decoder"):
        calibrate(Checkpoint(checkpoint), text, tmp_path / "imatrix.gguf")


def test_a_weight_beyond_f16_is_named(text: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][7, 3] = 1e30

    source = Checkpoint(make_checkpoint(tmp_path / "source", edits=Edits(tensors=spoil)))
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight exceeds the range of F16"):
        calibrate(source, text, tmp_path / "imatrix.gguf")


def test_another_layout_of_tensors_is_refused(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = calibrate_module.llama_ggml.libggml
    overhead = library.ggml_tensor_overhead()
    monkeypatch.setattr(library, "ggml_tensor_overhead", lambda: overhead + 8)
    with pytest.raises(DecoderError, match="whose layout this program knows"):
        calibrate(Checkpoint(checkpoint), text, tmp_path / "imatrix.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_an_exception_in_the_callback_ends_the_run(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise ValueError("no such field")

    monkeypatch.setattr(calibrate_module.Calibration, "observe", fail)
    with pytest.raises(DecoderError, match=r"its graph cannot be read \(no such field\)"):
        calibrate(Checkpoint(checkpoint), text, tmp_path / "imatrix.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def _squares(source: Checkpoint, chunks: list[list[int]], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the sums of the squares of each linear layer's input in the numpy model."""
    sums: dict[str, Any] = {}
    linear = reference.SourceWeights.linear

    def watched(self: Any, name: str, x: Any, *, bias: bool = True) -> Any:
        sums[name] = sums.get(name, 0) + (x**2).sum(0)
        return linear(self, name, x, bias=bias)

    patch.setattr(reference.SourceWeights, "linear", watched)
    for chunk in chunks:
        bos = 264
        embeds = source.rows("model.embed_tokens.weight", np.array([bos, *chunk[1:]]))
        reference.decoder_logits(source, embeds, dtype=np.float32)
    return sums
