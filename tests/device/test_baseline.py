"""The script for a real card, without a card: the machines that it refuses, and its table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_nvidia import environment

SCRIPT = Path(__file__).parent / "baseline.py"
COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main"]


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def printed(*arguments: str | Path, env: dict[str, str] | None = None) -> Any:
    return json.loads(subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, check=True, env=env).stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "WORK"),
        (["work", "--types", ","], "',' is not a list of types such as q4_k_m,q8_0"),
        (["work", "--rounds", "0"], "'0' is not a whole number from 1"),
        (["work", "--shape", "405b"], "invalid choice"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_help_names_every_option() -> None:
    shown = run("--help").stdout
    for option in ("--shape", "--types", "--rounds", "--skip-build", "--render"):
        assert option in shown


def test_the_options_of_bench_that_it_uses_exist() -> None:
    shown = subprocess.run([*COMMAND, "bench", "--help"], capture_output=True, text=True, check=True).stdout
    used = {word for word in SCRIPT.read_text().split('"') if word.startswith("--") and " " not in word}
    assert {"--model", "--gpu-layers", "--vision-device", "--rounds", "--json"} <= used
    for option in ("--model", "--gpu-layers", "--vision-device", "--rounds", "--json"):
        assert option in shown


def test_a_machine_that_lacks_something_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    # a driver without a card; a card without the toolkit
    without_card = run(tmp_path / "work", env=environment(tmp_path / "a", count=0))
    assert (without_card.returncode, without_card.stdout) == (5, "")
    assert "NVIDIA's driver finds no card" in without_card.stderr
    if shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        without_toolkit = run(tmp_path / "work", env=environment(tmp_path / "b"))
        assert without_toolkit.returncode == 5
        assert "nvcc is not in the path" in without_toolkit.stderr
    assert not (tmp_path / "work").exists()
    assert "results.json" in run(tmp_path, "--render").stderr


def recorded(bench: Any, doctor: Any) -> dict[str, Any]:
    """Return the script's results of one run."""
    run = {"type": "q4_k_m", "gpu_layers": "16", "n_layer": 32, "report": bench}
    return {"shape": "8b", "llama_cpp_python": "0.3.36", "doctor": doctor, "runs": [run]}


def test_the_table_holds_the_figures_of_bench_and_doctor(tmp_path: Path, bundles: dict[str, Path]) -> None:
    bench = printed("bench", "-m", bundles["Q4_K_M"], "--rounds", "1", "--only", "decode 1", "--json")
    doctor = printed("doctor", "--json", "-m", bundles["Q4_K_M"], env=environment(tmp_path / "driver"))
    (tmp_path / "results.json").write_text(json.dumps(recorded(bench, doctor)))
    result = run(tmp_path, "--render")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "table.md").read_text() == result.stdout
    about, _, head, rule, row = result.stdout.splitlines()
    assert about.startswith("Fake GPU 0, driver 580.65.06, bandwidth not measured; ")
    assert about.endswith("random weights in the 8b's shape, llama-cpp-python 0.3.36, medians of 1.")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert head.count("|") == rule.count("|") == row.count("|") == 9
    assert cells[:2] == ["Q4_K_M", "16 of 32"]
    rate = bench["measurements"][0]["on"]["tokens_per_s"] or bench["measurements"][0]["off"]["tokens_per_s"]
    assert cells[2] == f"{rate:,.1f} tokens/s"
    assert cells[3:] == ["–", *["not measured"] * 4]


def test_the_table_of_a_card(tmp_path: Path) -> None:
    def side(median_ms: float, rate: float | None = None, share: float | None = None) -> dict[str, Any]:
        return {"median_ms": median_ms, "tokens_per_s": rate, "share_of_ceiling": share, "rounds_ms": [median_ms]}

    def item(kind: str, tokens: int | None, **values: Any) -> dict[str, Any]:
        off = side(1e9)
        return {
            "kind": kind,
            "tokens": tokens,
            "on": side(**values),
            "off": off,
            "ceiling": "card" if tokens == 1 else None,
        }

    bench = {
        "rounds": 3,
        "ceilings": {"card_gb_per_s": 256.4},
        "measurements": [
            item("decode", 1, median_ms=21.0, rate=47.62, share=0.871),
            item("prefill", 512, median_ms=400.0, rate=1280.0),
            item("encode", None, median_ms=30.4),
            item("first_token", None, median_ms=612.0),
            item("follow_up", None, median_ms=45.6),
        ],
    }
    machine = {"subject": "machine", "data": {"cpu": "a processor", "cores": 8}}
    driver = {"subject": "NVIDIA driver", "data": {"version": "580.1", "gpus": [{"name": "RTX"}]}}
    results = recorded(bench, {"findings": [machine, driver]})
    results["runs"][0]["gpu_layers"] = "all"
    (tmp_path / "results.json").write_text(json.dumps(results))
    lines = run(tmp_path, "--render").stdout.splitlines()
    assert lines[0].startswith("RTX, driver 580.1, 256 GB/s copied; a processor, 8 cores; ")
    row = "| Q4_K_M | all | 47.6 tokens/s | 87% | 1,280.0 tokens/s | 30 ms | 612 ms | 46 ms |"
    assert lines[-1] == row
