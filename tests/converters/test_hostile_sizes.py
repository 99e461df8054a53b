"""The largest headers and indexes that are read: refused within a second of processor time and 300 MB."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from make_checkpoint import make_checkpoint

CHILD = """
import re, sys, time
from pathlib import Path
from bimedix_edge.converters.source.shards import open_shards
from bimedix_edge.errors import CheckpointError
start = time.process_time()
try:
    open_shards(Path(sys.argv[1]))
except CheckpointError as error:
    assert len(str(error)) < 400
    seconds = time.process_time() - start
    peak_kB = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    print(seconds, int(peak_kB) / 1024)
"""
EMPTY = b'{"dtype":"F32","shape":[],"data_offsets":[0,0]}'
LIMIT = 2 << 20


def many(item: Callable[[int], bytes], size: int) -> bytes:
    """Return the largest object within the limit."""
    items, length, index = [], 2, 0
    while length + 80 < size:
        items.append(item(index))
        length += len(items[-1]) + 1
        index += 1
    return b"{" + b",".join(items) + b"}"


HEADERS: dict[str, Callable[[], bytes]] = {
    "empty_tensors": lambda: many(lambda i: b'"%d":%s' % (i, EMPTY), LIMIT),
    "empty_objects": lambda: many(lambda i: b'"%d":{}' % i, LIMIT),
    "numbers": lambda: b'{"x":{"dtype":"F32","shape":[' + b"1," * (LIMIT // 2 - 60) + b'1],"data_offsets":[0,0]}}',
    "lists": lambda: b'{"x":[' + b"[]," * (LIMIT // 3 - 40) + b"[]]}",
    "deep": lambda: b'{"x":' + b"[" * (LIMIT - 20),
    "long_name": lambda: b'{"' + b"x" * (LIMIT - 100) + b'":' + EMPTY + b"}",
    "same_name": lambda: many(lambda i: b'"x":{}', LIMIT),
    "long_number": lambda: b'{"x":' + b"9" * (LIMIT - 20) + b"}",
    "over_long": lambda: b" " * (80 << 20),
}
INDEXES: dict[str, Callable[[], bytes]] = {
    "names": lambda: b'{"weight_map":' + many(lambda i: b'"%d":"a"' % i, (2 << 20) - 20) + b"}",
    "objects": lambda: b'{"weight_map":' + many(lambda i: b'"%d":{}' % i, (2 << 20) - 20) + b"}",
    "files": lambda: b'{"weight_map":' + many(lambda i: b'"%d":"%d"' % (i, i), (2 << 20) - 20) + b"}",
    "over_long": lambda: b" " * (80 << 20),
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def check(directory: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, str(directory)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    seconds, megabytes = map(float, output.split())
    assert seconds < 1
    assert megabytes < 300


@pytest.mark.parametrize("kind", HEADERS)
def test_header(kind: str, tmp_path: Path) -> None:
    header = HEADERS[kind]()
    assert kind == "over_long" or len(header) <= LIMIT
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    check(tmp_path)


@pytest.mark.parametrize("kind", INDEXES)
def test_index(kind: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    (source / "model.safetensors.index.json").write_bytes(INDEXES[kind]())
    check(source)
