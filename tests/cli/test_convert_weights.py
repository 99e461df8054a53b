"""The options of `convert` that change the weights, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bimedix_edge.bundle import read_manifest
from bimedix_edge.cli.commands.convert import convert
from bimedix_edge.errors import InputError, UsageError


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(convert, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_table_and_the_choice_of_vision(tmp_path: Path) -> None:
    output = run("--demo", "-o", tmp_path / "out", "--strict")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.vision.weights == "int8"
    assert manifest.quality.vision.n_images == 4
    lines = output.splitlines()
    for kind, found in manifest.quality.types.items():
        assert [line.split()[1] for line in lines if line.startswith(f"{kind} ")] == [str(found.n_tensors)]
    assert len([line for line in lines if line.startswith("worst")]) == 5
    assert "lowest 0.999" in output
    assert "int8 passes 0.999" in output


def test_calibrate_then_use_what_was_saved(tmp_path: Path) -> None:
    text, saved, recipe = tmp_path / "text.txt", tmp_path / "imatrix.gguf", tmp_path / "recipe.toml"
    text.write_text("Is there a nodule? No, the lungs are clear. هل توجد عقدة رئوية؟ لا. " * 80, encoding="utf-8")
    recipe.write_text('[types]\n"output.weight" = "Q8_0"\n')
    options = ("--demo", "--vision", "float32", "--recipe", recipe)
    run(*options, "-o", tmp_path / "first", "--calibrate", text, "--save-imatrix", saved)
    run(*options, "-o", tmp_path / "second", "--imatrix", saved)
    first, second = read_manifest(tmp_path / "first"), read_manifest(tmp_path / "second")
    assert first == second
    assert {"sha256:imatrix", "sha256:recipe"} <= first.source.keys()
    assert str(tmp_path) not in json.dumps(first.source)


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    with pytest.raises(UsageError, match="--imatrix and --calibrate exclude each other"):
        run("--demo", "--imatrix", text, "--calibrate", text)
    with pytest.raises(UsageError, match="--save-imatrix needs --calibrate"):
        run("--demo", "--save-imatrix", text)
    with pytest.raises(InputError, match="cannot be read"):
        run("--demo", "-o", tmp_path / "out", "--calibrate", text)
    assert not list(tmp_path.iterdir())
