"""Importance matrices: both formats, llama.cpp's bytes with the same one, and wrong ones."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_quantizer import quantized_by_llama_cpp
from make_checkpoint import Shape, make_checkpoint

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder.imatrix import read_imatrix, write_imatrix
from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.decoder.gguf_header import read_header
from bimedix_edge.errors import InputError

SHAPE = Shape(n_layer=9, n_ff=512, n_head=4, n_head_kv=1)
N_TOKENS = 1024
WEIGHTED = [kind for kind in FILE_TYPES if kind not in ("F32", "F16", "BF16")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imatrix")
    convert(make_checkpoint(root / "source", shape=SHAPE), root / "f32", ConvertOptions(file_type="F32"))
    write_imatrix(root / "imatrix.gguf", sums(), N_TOKENS, 512)
    return root / "source"


def sums(shape: Shape = SHAPE) -> dict[str, Any]:
    """Return sums as of a text; some columns matter a thousand times as much as others."""
    rng = np.random.default_rng(3)
    widths = {"attn_q": shape.n_embd, "attn_k": shape.n_embd, "attn_v": shape.n_embd, "attn_output": shape.n_embd}
    widths |= {"ffn_gate": shape.n_embd, "ffn_up": shape.n_embd, "ffn_down": shape.n_ff}
    return {
        f"blk.{layer}.{part}.weight": N_TOKENS * 10 ** rng.uniform(-2, 1, width)
        for layer in range(shape.n_layer)
        for part, width in widths.items()
    }


@pytest.mark.parametrize("kind", WEIGHTED)
def test_equal_to_llama_cpp(kind: str, source: Path, tmp_path: Path) -> None:
    path = source.with_name("imatrix.gguf")
    convert(source, tmp_path / "ours", ConvertOptions(file_type=kind, imatrix=path))
    theirs = quantized_by_llama_cpp(
        source.with_name("f32") / "decoder.gguf", tmp_path / "theirs.gguf", kind, imatrix=read_imatrix(path)
    )
    expected = {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in theirs.tensors}
    for tensor in gguf.GGUFReader(tmp_path / "ours/decoder.gguf").tensors:
        assert (tensor.tensor_type, tensor.data.tobytes()) == expected[tensor.name], tensor.name


def test_it_changes_what_is_written_and_is_named(source: Path, tmp_path: Path) -> None:
    weighted = convert(source, tmp_path / "weighted", ConvertOptions(imatrix=source.with_name("imatrix.gguf")))
    plain = convert(source, tmp_path / "plain")
    assert weighted.files["decoder"].sha256 != plain.files["decoder"].sha256
    assert weighted.files["decoder"].size_bytes == plain.files["decoder"].size_bytes
    assert weighted.source.keys() - plain.source.keys() == {"sha256:imatrix"}


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", sums(), N_TOKENS, 512)
    # the older format, as llama.cpp's save_imatrix_legacy writes it: mean times the number of chunks
    with (tmp_path / "a.dat").open("wb") as file:
        file.write(struct.pack("<i", len(sums())))
        for name, values in sums().items():
            data = (values.astype(np.float32) / np.float32(N_TOKENS) * np.float32(2)).tobytes()
            file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 2, len(values)) + data)
        file.write(struct.pack("<ii", 2, 3) + b"txt")
    ours, older = read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "a.dat")
    assert ours.keys() == older.keys() == sums().keys()
    for name, values in ours.items():
        assert values.dtype == older[name].dtype == np.float32
        np.testing.assert_allclose(values, sums()[name] / N_TOKENS, rtol=1e-6)
        np.testing.assert_allclose(values, older[name], rtol=1e-6)


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", sums(), N_TOKENS, 512)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.ffn_down.weight.in_sum2"].shape.tolist() == [512, 1]
    assert tensors["blk.0.ffn_down.weight.counts"].data.tolist() == [[1024.0]]
    header = read_header((tmp_path / "a.gguf").read_bytes())
    assert {name: info.start for name, info in header.tensors.items()} == {
        name: int(tensor.data_offset) for name, tensor in tensors.items()
    }


def test_no_count_means_no_preference(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", {"blk.0.attn_q.weight": np.zeros(8)}, 0, 512)
    assert read_imatrix(tmp_path / "a.gguf")["blk.0.attn_q.weight"].tolist() == [1.0] * 8


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda sums: sums.pop("blk.1.ffn_up.weight"), r"blk\.1\.ffn_up\.weight is missing"),
        (lambda sums: sums.update({"blk.9.ffn_up.weight": np.ones(256)}), r"blk\.9\.ffn_up\.weight is not a matrix"),
        (lambda sums: sums.update({"blk.2.ffn_down.weight": np.ones(256)}), "has 256 columns instead of 512"),
        (lambda sums: sums.update({"blk.2.ffn_down.weight": np.full(512, np.nan)}), "not means of squares"),
        (lambda sums: sums.update({"blk.2.ffn_down.weight": np.full(512, -1.0)}), "not means of squares"),
        (lambda sums: sums.clear(), "it has no entry"),
    ],
)
def test_imatrix_of_another_model(edit: Any, message: str, source: Path, tmp_path: Path) -> None:
    changed = sums()
    edit(changed)
    write_imatrix(tmp_path / "a.gguf", changed, N_TOKENS, 512)
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", ConvertOptions(imatrix=tmp_path / "a.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_no_imatrix_at_all(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The importance matrix .* cannot be read"):
        read_imatrix(tmp_path / "none.dat")
    with pytest.raises(InputError, match="a GGUF of type 'model'"):
        read_imatrix(source.with_name("f32") / "decoder.gguf")
    (tmp_path / "pickle.dat").write_bytes(b"\x80\x04\x95" + bytes(64))
    with pytest.raises(InputError, match="is not an importance matrix"):
        read_imatrix(tmp_path / "pickle.dat")


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_damaged_at_random(form: str, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", {"blk.0.attn_q.weight": np.ones(16), "blk.1.attn_q.weight": np.ones(16)}, 8, 4)
    good = (tmp_path / "a.gguf").read_bytes()
    if form == "dat":
        entry = struct.pack("<i", 3) + b"abc" + struct.pack("<ii16f", 2, 16, *[1.0] * 16)
        good = struct.pack("<i", 2) + entry + entry
    rng, n_refused = random.Random(5), 0
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        (tmp_path / "b").write_bytes(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        try:
            entries = read_imatrix(tmp_path / "b")
        except InputError:
            n_refused += 1
            continue
        assert all(np.isfinite(values).all() and (values >= 0).all() for values in entries.values())
    assert n_refused > 100
