"""`models` and `convert` as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bimedix_edge.store import demo_checkpoint


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bimedix_edge.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIMEDIX_EDGE_STORE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_convert_installs_and_models_lists_shows_and_verifies(own_store: Path) -> None:
    assert "No model is installed" in run("models", "list").stdout
    converted = run("convert", demo_checkpoint(), "-t", "q4_k_m", "-n", "my-model")
    assert converted.returncode == 0, converted.stderr
    assert "not for clinical use" in converted.stdout
    assert "my-model:q4_k_m" in run("models", "list").stdout
    (row,) = json.loads(run("models", "list", "--json").stdout)
    assert row["name"] == "my-model:q4_k_m"
    assert row["fault"] is None
    assert "Q4_K_M" in run("models", "show", "my-model").stdout
    assert json.loads(run("models", "show", "my-model:q4_k_m", "--json").stdout)["prompt"]["bos"] == 2
    verified = run("models", "verify", "my-model")
    assert verified.returncode == 0
    assert "identical to the manifest" in verified.stdout
    again = run("convert", demo_checkpoint(), "-t", "q4_k_m", "-n", "my-model")
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert run("convert", demo_checkpoint(), "-t", "q4_k_m", "-n", "my-model", "--force").returncode == 0


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(own_store: Path) -> None:
    shown = run("convert", "--demo", "-t", "q4_k_m", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "Q6_K" in shown.stdout
    assert "enough" in shown.stdout
    plan = json.loads(run("convert", "--demo", "-t", "q4_k_m", "--dry-run", "--json").stdout)
    assert {row["kind"] for row in plan["rows"]} == {"Q4_K", "Q6_K", "F32"}
    assert not (own_store / "store").exists()
    assert run("convert", "--demo", "-t", "q4_k_m").returncode == 0
    folder = own_store / "store" / "demo" / "q4_k_m"
    assert (folder / "decoder.gguf").stat().st_size <= plan["decoder_bytes"]
    assert (folder / "vision.onnx").stat().st_size <= plan["vision_bytes"]


def test_the_only_installed_model_is_used_and_several_must_be_named(own_store: Path) -> None:
    for name in ("one", "two"):
        assert run("convert", "--demo", "-t", "q8_0", "-n", name).returncode == 0
        result = run("ask", "--json", "Hello")
        if name == "one":
            assert json.loads(result.stdout)["model"] == "one:q8_0"
    assert result.returncode == 2
    assert "one:q8_0, two:q8_0" in result.stderr


def test_a_damaged_model_is_listed_as_such_and_verify_names_the_file(own_store: Path) -> None:
    run("convert", "--demo", "-t", "q8_0", "-n", "m")
    folder = own_store / "store" / "m" / "q8_0"
    (folder / "vision.onnx").write_bytes(b"x")
    verified = run("models", "verify", "m")
    assert verified.returncode == 4
    assert "vision.onnx has 1 bytes instead of" in verified.stderr
    (folder / "manifest.json").write_text("{")
    assert "damaged" in run("models", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["convert"], 2, "--demo"),
        (["convert", "--demo", "-t", "q3"], 2, "Q4_K_M"),
        (["convert", "--demo", "-n", "Bad Name"], 2, "name such as"),
        (["convert", "nowhere"], 4, "nowhere"),
        (["models", "show", "nowhere"], 2, "No installed model is named"),
        (["models", "show", "./nowhere"], 4, "bundle directory"),
        (["models", "verify", "."], 4, "manifest.json"),
    ],
)
def test_mistakes_are_one_sentence(own_store: Path, arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (own_store / "store").exists()
