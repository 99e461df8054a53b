"""`doctor` as a process: its findings, its remedies, its time, and that it changes nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from fake_nvidia import environment
from test_offline import CALLS, LOCAL, trace_command

COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIMEDIX_EDGE_STORE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def findings(*arguments: str | Path, env: dict[str, str] | None = None, code: int = 0) -> dict[str, Any]:
    result = run("doctor", "--json", *arguments, env=env)
    assert result.returncode == code, result.stdout
    report = json.loads(result.stdout)
    assert report["ok"] == (code == 0)
    return {finding["subject"]: finding for finding in report["findings"]}


def test_a_bare_machine_on_which_chat_would_run(own_store: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run("doctor")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert result.stdout.endswith("chat would run\n")
    # 1.1 s on an idle machine; the processor time does not depend on other programs
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    found = findings()
    assert set(found) >= {
        "machine",
        "memory",
        "llama-cpp-python",
        "kernels",
        "onnxruntime",
        "model",
        "store",
        "network",
    }
    assert found["image cache"]["found"].startswith("off; 0 images, 0.0 MB in ")
    assert found["model"]["found"] == "none installed; the demo model will be converted on first use"
    assert "CPU" in found["llama-cpp-python"]["data"]["backends"]
    assert found["network"]["data"] == {"internet_sockets": 0 if sys.platform == "linux" else None, "telemetry": False}
    assert {device["name"] for device in found["decoder on"]["data"]["devices"]} >= {"CPU"}
    syntaxes = {row["uid"]: row for row in found["DICOM codecs"]["data"]["transfer_syntaxes"]}
    assert syntaxes["1.2.840.10008.1.2.4.90"]["available"]
    assert len(syntaxes) >= 16


def test_it_asks_the_system_for_no_connection(own_store: Path, tmp_path: Path) -> None:
    log = tmp_path / "trace"
    subprocess.run([*trace_command(log), *COMMAND, "doctor"], capture_output=True, check=True)
    assert [line for line in log.read_text().splitlines() if CALLS.search(line) or LOCAL.search(line)] == []
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "cache").exists()  # the demo model was not converted


@pytest.mark.parametrize("columns", [40, 80])
def test_in_a_terminal_nothing_is_cut_and_arabic_stands_at_the_right(columns: int, own_store: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
    # pexpect sets the size after the start, which a busy machine may see too late
    environ = os.environ | {"COLUMNS": str(columns)}
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "doctor"], encoding="utf-8", timeout=60, dimensions=(50, columns), env=environ
    )
    child.expect(pexpect.EOF)
    shown = ANSI.sub("", child.before).replace("\r", "")
    assert "…" not in shown
    assert str(own_store / "store").replace("/", "") in re.sub(r"\s|/|✓", "", shown)
    lines = shown.split("\n")
    arabic = [line for line in lines if any("\ufe70" <= character <= "\ufefc" for character in line)]
    # joined forms in visual order, so that the first word is the last one of its line
    assert len(arabic) == (2 if columns == 40 else 1)
    assert arabic[0].endswith("CT \ufead\ufeaa\ufebc\ufedf\ufe8d \ufe93\ufead\ufeee\ufebb")
    assert all(len(line) == columns - 1 for line in arabic)
    # only commands to copy may be longer than a line
    assert all(len(line) <= columns for line in lines if "pip install" not in line)


def test_a_card_and_a_llama_cpp_without_cuda(own_store: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "driver", cuda=99000, version="999.1")
    found = findings(env=env)
    assert found["NVIDIA driver"]["found"].startswith(
        "999.1, runs CUDA up to 99.0; Fake GPU 0 (compute capability 8.9, 8.6 GB"
    )
    assert found["NVIDIA driver"]["data"]["gpus"][0]["free_bytes"] == 6 << 30
    assert found["decoder on"]["found"] == "the CPU: llama.cpp was built without CUDA"
    assert 'CMAKE_ARGS="-DGGML_CUDA=on"' in found["decoder on"]["remedy"]
    # in words, each command stands on a line of its own
    shown = run("doctor", env=env).stdout
    assert f"\ndecoder on: {found['decoder on']['remedy']}\n" in shown
    if getattr(onnxruntime, "cuda_version", ""):
        assert "not cuda: ONNX Runtime cannot load what it needs for CUDA" in found["image encoder on"]["found"]
        assert "pip install 'onnxruntime-gpu[cuda,cudnn]==" in found["image encoder on"]["remedy"]


def test_a_device_in_the_settings_that_is_not_here_keeps_chat_from_running(
    own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIMEDIX_EDGE_VISION_DEVICE", "coreml" if sys.platform == "linux" else "cuda")
    found = findings(code=5)
    assert not found["image encoder on"]["ok"]
    assert "not c" in found["image encoder on"]["found"]


def test_large_models_are_hashed_only_with_verify(own_store: Path, bundles: dict[str, Path]) -> None:
    shutil.copytree(bundles["Q8_0"], own_store / "store/m/q8_0")
    assert findings()["model"]["data"]["hashed"]
    decoder = own_store / "store/m/q8_0/decoder.gguf"
    data = bytearray(decoder.read_bytes())
    data[-1] ^= 1
    decoder.write_bytes(data)
    assert "other content" in findings(code=4)["model"]["found"]
    # as if it were large
    code = "import sys; from bimedix_edge.cli import findings_model; findings_model._SMALL_BYTES = 0\n"
    code += "from bimedix_edge.cli.main import main; sys.argv[0] = 'bimedix-edge'; main()"
    quick, whole = (
        subprocess.run([sys.executable, "-c", code, "doctor", *flags], capture_output=True, text=True, check=False)
        for flags in ([], ["--verify"])
    )
    assert quick.returncode == 0
    assert "--verify reads every byte" in " ".join(quick.stdout.split())
    assert whole.returncode == 4
    assert "other content" in " ".join(whole.stdout.split())


def test_a_damaged_model_that_chat_would_not_use_is_reported(own_store: Path, bundles: dict[str, Path]) -> None:
    for name in ("m", "other"):
        shutil.copytree(bundles["Q8_0"], own_store / "store" / name / "q8_0")
    (own_store / "store/other/q8_0/decoder.gguf").unlink()
    found = findings("-m", "m")
    assert "damaged: other:q8_0: " in found["store"]["found"]
    assert [row["fault"] is None for row in found["store"]["data"]["bundles"]] == [True, False]
    assert "decoder.gguf is missing" in findings("-m", "other", code=4)["model"]["found"]
    assert "several are installed" in findings(code=2)["model"]["found"]


def test_doctor_survives_an_engine_that_does_not_load(own_store: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['llama_cpp'] = None\n"  # an import of it now raises ImportError
        "sys.argv = ['bimedix-edge', 'doctor']\n"
        "from bimedix_edge.cli.main import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert "llama-cpp-python does not load" in " ".join(result.stdout.split())
    assert "Traceback" not in result.stderr
