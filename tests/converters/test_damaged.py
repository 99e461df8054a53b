"""Damage at random: the converter accepts a damaged checkpoint or refuses it in its own words, without a traceback."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_checkpoint import Form, Shape, make_checkpoint, write_json

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.errors import CheckpointError, HardwareError

JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "vision_tower/config.json",
    "vision_tower/preprocessor_config.json",
)
VALUES = (
    None,
    True,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    [1],
    {},
    {"a": 1},
    [[]],
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint(
        tmp_path_factory.mktemp("damaged") / "whole", shape=Shape(n_layer=1), form=Form(n_shards=2)
    )
    fields = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"shortest_edge": 28}, "resample": 3}
    write_json(directory / "vision_tower/preprocessor_config.json", fields)
    return directory


@pytest.mark.parametrize("seed", range(150))
def test_a_value_replaced(seed: int, source: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    directory = shutil.copytree(source, tmp_path / "copy", copy_function=_link)
    path = directory / rng.choice(JSON_FILES)
    value = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(rng.randint(1, 2)):
        container, key = rng.choice(list(_places(value)))
        if rng.random() < 0.2 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = rng.choice(VALUES)
    path.unlink()
    path.write_text(json.dumps(value), encoding="utf-8")
    _convert(directory, tmp_path)


@pytest.mark.parametrize("seed", range(100))
def test_bytes_changed_cut_or_added(seed: int, source: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    directory = shutil.copytree(source, tmp_path / "copy", copy_function=_link)
    shards = [path.name for path in directory.glob("*.safetensors")]
    path = directory / rng.choice([*JSON_FILES, *shards, *shards, *shards])
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
    kept = rng.choice((len(data), len(data), rng.randrange(len(data))))
    path.unlink()
    path.write_bytes(data[:kept] + bytes(rng.choice((0, 0, 7))))
    _convert(directory, tmp_path)


def _convert(directory: Path, tmp_path: Path) -> None:
    """Convert, and check the bundle or the refusal."""
    try:
        convert(directory, tmp_path / "out", ConvertOptions(file_type="Q4_0"))
    except (CheckpointError, HardwareError) as error:
        message = str(error)
        # the problem, then what to do
        assert re.search(r"\. [A-Z].*\.$", message), message
        assert len(message) < 2500
        assert "\n" not in message
        assert not (tmp_path / "out").exists()
    else:
        assert (tmp_path / "out/manifest.json").exists()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON value with each of its keys; of long lists and tables, the first few."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys[:40]:
        yield value, key
        yield from _places(value[key])


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
