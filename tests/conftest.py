"""Fixtures for all tests: an environment of their own, and the demo model, converted once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.runtime import Runtime
from bimedix_edge.settings import Settings
from bimedix_edge.store import demo_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the user's settings, store and cache, and the user's settings away from the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in list(os.environ):
            if variable.startswith(("BIMEDIX_EDGE_", "XDG_")):
                patch.delenv(variable)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        patch.setenv("BIMEDIX_EDGE_STORE_DIR", str(home / "store"))
        patch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(home / "cache"))
        yield


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the demo model's bundles by type."""
    root = tmp_path_factory.mktemp("bundles")
    kinds = ("F32", "F16", "Q8_0", "Q4_K_M")
    for kind in kinds:
        convert(demo_checkpoint(), root / kind, ConvertOptions(file_type=kind, name=f"demo:{kind.lower()}"))
    return {kind: root / kind for kind in kinds}


@pytest.fixture
def runtime(bundles: dict[str, Path]) -> Iterator[Runtime]:
    """Return the demo model at F16, greedy, with a context of 1024 tokens."""
    with Runtime.open(bundles["F16"], settings=Settings(temperature=0.0, ctx_size=1024)) as opened:
        yield opened


@pytest.fixture(scope="session")
def samples() -> Path:
    """Return the directory of the demo's sample images."""
    return ROOT / "models" / "demo" / "samples"
