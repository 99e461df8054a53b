"""What the converters' tests share: tiny checkpoints, and llama.cpp without its log."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from make_checkpoint import Form, make_checkpoint

from bimedix_edge.converters.convert import ConvertOptions, convert


@llama_cpp.llama_log_callback
def _no_log(_level: int, _text: bytes, _user_data: ctypes.c_void_p) -> None:
    return None


@pytest.fixture(scope="session", autouse=True)
def quiet_llama() -> Iterator[None]:
    llama_cpp.llama_log_set(_no_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny checkpoint in the authors' layout; tests that change one make their own."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", form=Form(n_shards=2))


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return that checkpoint converted at F32."""
    target = tmp_path_factory.mktemp("bundle") / "tiny"
    convert(checkpoint, target, ConvertOptions(file_type="F32"))
    return target


@pytest.fixture(scope="session")
def llama3_vocab() -> Path:
    """Return the published Llama 3 vocabulary of llama.cpp's tests, which is too large for this repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("LLAMA3_VOCAB_DIR", beside)) / "ggml-vocab-llama-bpe.gguf"
    if not path.is_file():
        pytest.skip("the Llama 3 vocabulary is not here; name its directory in LLAMA3_VOCAB_DIR")
    return path
