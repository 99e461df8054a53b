"""The safetensors header: read as published, and refused within bounds when it does not match the bytes."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bimedix_edge.converters.source.checkpoint import as_float32
from bimedix_edge.converters.source.safetensors_file import SafetensorsFile
from bimedix_edge.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"\0" * 8, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int = 0, stop: int = 8, dtype: str = "F32", shape: tuple[Any, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((7,)).astype(ml_dtypes.bfloat16),
        "c": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "none": np.zeros((0, 4), np.float32),
        "ids": np.arange(3),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert {name: (item.dtype, item.shape) for name, item in file.entries.items()} == {
        "a": ("F32", (3, 5)),
        "b": ("BF16", (7,)),
        "c": ("F16", (2, 3, 4)),
        "none": ("F32", (0, 4)),
        "ids": ("I64", (3,)),
    }
    for name in ("a", "b", "c"):
        view = file.array(name)
        assert view.dtype == arrays[name].dtype
        assert not view.flags.writeable
        assert np.array_equal(view, arrays[name])


def test_every_bfloat16_becomes_the_same_float32() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    values = patterns.view(ml_dtypes.bfloat16)
    given = as_float32(values)
    assert given.dtype == np.float32
    assert np.array_equal(given, values.astype(np.float32), equal_nan=True)


def test_unaligned_data(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    header = json.dumps({"x": entry(0, 24, shape=(2, 3))}).encode()
    header += b" " * (1 + (3 - len(header)) % 4)  # the data starts at an odd offset
    path = write(tmp_path / "x.safetensors", header, values.tobytes())
    assert np.array_equal(as_float32(SafetensorsFile(path).array("x"), slice(1, 2)), values.reshape(2, 3)[1:])


def test_header_that_starts_like_a_pickle(tmp_path: Path) -> None:
    header = json.dumps({"x": entry()}).encode().ljust(0x280)  # its length is the bytes 80 02
    assert list(SafetensorsFile(write(tmp_path / "x.safetensors", header)).entries) == ["x"]


BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "not_json": (b"{nonsense", "is not valid JSON"),
    "not_utf8": (b'{"\xff": 1}', "is not valid JSON"),
    "array": ([], r"the header of x\.safetensors is not a JSON object"),
    "deep": (b'{"x":' * 100_000, "is not valid JSON"),
    "twice": (b'{"x":{"dtype":"F32"},"x":{"dtype":"F32"}}', "'x' appears twice"),
    "nan": (b'{"x": NaN}', "NaN is not a JSON number"),
    "no_dtype": ({"x": {"shape": [2], "data_offsets": [0, 8]}}, "The field dtype is missing"),
    "unknown_dtype": ({"x": entry(dtype="F12")}, "unknown dtype 'F12'"),
    "dtype_as_number": ({"x": entry(dtype=7)}, "It supports a string"),  # type: ignore[arg-type]
    "negative": ({"x": entry(shape=(-2,))}, "are not sizes"),
    "float_shape": ({"x": entry(shape=(2.0,))}, "are not sizes"),
    "bool_shape": ({"x": entry(shape=(True, 2))}, "are not sizes"),
    "huge_shape": ({"x": entry(shape=(1 << 62, 1 << 62))}, "are not sizes"),
    "many_dimensions": ({"x": entry(shape=(1,) * 9)}, "are not sizes"),
    "one_offset": ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "are not sizes"),
    "wrong_size": ({"x": entry(shape=(3,))}, r"has 8 bytes, which is not F32 times \[3\]"),
    "backwards": ({"x": entry(8, 0, shape=(2,))}, "has -8 bytes"),
    "overlap": ({"x": entry(0, 8), "y": entry(4, 8, shape=(1,))}, "y starts at byte"),
    "hole": ({"x": entry(0, 4, shape=(1,)), "y": entry(8, 8, shape=(0,))}, "y starts at byte"),
    "too_short": ({"x": entry(0, 16, shape=(4,))}, "its tensors end at byte"),
    "rest": ({"x": entry(0, 4, shape=(1,))}, "its tensors end at byte"),
    "empty": ({}, "its tensors end at byte"),
    "metadata_only": ({"__metadata__": {"format": "pt"}}, "its tensors end at byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header(case: str, tmp_path: Path) -> None:
    header, message = BAD_HEADERS[case]
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 400


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", {"x": entry()}).read_bytes()
    for size in range(len(whole)):
        path = tmp_path / "x.safetensors"
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_length_beyond_the_file_or_the_limit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot hold a header of 18446744073709551615"):
        SafetensorsFile(write(tmp_path / "x", {}, length=(1 << 64) - 1))
    with (tmp_path / "y").open("wb") as file:
        file.write((3 << 20).to_bytes(8, "little") + b"{")
        file.truncate(4 << 20)
    with pytest.raises(CheckpointError, match="its header of 3145728 bytes is longer than"):
        SafetensorsFile(tmp_path / "y")


def test_many_empty_tensors_are_refused_quickly(tmp_path: Path) -> None:
    body = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(32_000))
    path = write(tmp_path / "x", f"{{{body}}}".encode(), b"")
    start = time.process_time()
    with pytest.raises(CheckpointError, match="lists 32000 tensors, more than"):
        SafetensorsFile(path)
    assert time.process_time() - start < 1


PICKLES: dict[str, Callable[[Path], Any]] = {
    "zip": lambda path: zipfile.ZipFile(path, "w").writestr("archive/data.pkl", b"x"),
    "protocol_2": lambda path: path.write_bytes(b"\x80\x02]q\x00."),
    "protocol_4": lambda path: path.write_bytes(b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94."),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickle_under_another_name(kind: str, tmp_path: Path) -> None:
    PICKLES[kind](tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is a pickle, .* It was not opened"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_missing_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            SafetensorsFile(path)
