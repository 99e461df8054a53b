"""A device that fails during an answer, as users of `chat` and `ask` see it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from native_build import NATIVE, compile_native, with_ggml

_SCRIPT = Path(__file__).parents[1] / "support" / "offload_cli.py"
# prefill computes one graph, and each token after the first another
_GRAPHS = 5
_QUESTION = "Hello, who are you?"
_NEVER = -1
_AGREE = "Load the model again on the CPU alone?"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("native") / "libstand_in.so"
    return compile_native([NATIVE / "stand_in.cpp"], output, "-O1", "-fPIC", "-shared", *with_ggml())


def words(stand_in: Path, n_graphs: int, command: str, bundle: Path, *more: str) -> list[str]:
    options = ["-m", str(bundle), "--temperature", "0", "--ctx-size", "512", "--gpu-layers", "3", "--fit-target", "0"]
    return [sys.executable, str(_SCRIPT), str(stand_in), str(n_graphs), command, *more, *options]


def ask(stand_in: Path, bundle: Path, n_graphs: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = words(stand_in, n_graphs, "ask", bundle, _QUESTION, *more)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def whole(stand_in: Path, bundles: dict[str, Path]) -> str:
    """Return the answer of a device that does not fail."""
    result = ask(stand_in, bundles["Q8_0"], _NEVER, "--json")
    assert result.returncode == 0, result.stderr
    return str(json.loads(result.stdout)["answer"])


def is_beginning(text: str, whole: str) -> bool:
    return 0 < len(text) < len(whole) and whole.startswith(text)


def test_ask_keeps_the_text_so_far_and_ends_with_5(stand_in: Path, bundles: dict[str, Path], whole: str) -> None:
    result = ask(stand_in, bundles["Q8_0"], _GRAPHS)
    assert result.returncode == 5
    text, _, rest = result.stdout.partition("(interrupted)")
    assert is_beginning(text.strip(), whole)
    assert "not for clinical use" in rest
    assert "the answer was interrupted" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_ask_says_so_in_json(stand_in: Path, bundles: dict[str, Path], whole: str) -> None:
    result = ask(stand_in, bundles["Q8_0"], _GRAPHS, "--json")
    assert result.returncode == 5
    report = json.loads(result.stdout)
    assert is_beginning(report["answer"], whole)
    assert report["stop_reason"] == "interrupted"


def plain(shown: str) -> str:
    # wherever the lines break
    return " ".join(_ANSI.sub("", shown).split())


def in_chat(stand_in: Path, bundle: Path, agree: str, tmp_path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Let the device fail, answer the prompt, ask for the answer again; return the screen and the saved file."""
    pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")
    command = words(stand_in, _GRAPHS, "chat", bundle)
    child = pexpect.spawn(command[0], command[1:], encoding="utf-8", timeout=30, dimensions=(50, 400), echo=False)
    seen = {}
    saved = [tmp_path / "first.json", tmp_path / "second.json"]
    try:
        child.expect_exact("for more.")
        child.expect_exact("> ")
        child.sendline(_QUESTION)
        child.expect_exact(_AGREE)
        seen["failed"] = plain(child.before)
        child.sendline(agree)
        child.expect_exact("> ")
        seen["after"] = plain(child.before)
        child.sendline(f"/save {saved[0]}")
        child.expect_exact("Saved")
        child.expect_exact("> ")
        child.sendline("/regen")
        child.expect_exact("> " if agree == "y" else _AGREE)
        seen["again"] = plain(child.before)
        if agree != "y":
            child.sendline(agree)
            child.expect_exact("> ")
        child.sendline(f"/save {saved[1]}")
        child.expect_exact("Saved")
        child.expect_exact("> ")
        child.sendline("/quit")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    assert child.exitstatus == 0
    talks = [json.loads(path.read_text(encoding="utf-8")) for path in saved]
    assert [len(talk["turns"]) for talk in talks] == [1, 1]
    return seen, [talk["turns"][0] for talk in talks]


@pytest.mark.parametrize("agree", ["y", "n"])
def test_chat_keeps_the_answer_and_goes_on_with_the_cpu_only_if_the_user_agrees(
    stand_in: Path, bundles: dict[str, Path], whole: str, tmp_path: Path, agree: str
) -> None:
    seen, (turn, again) = in_chat(stand_in, bundles["Q8_0"], agree, tmp_path)
    assert "(interrupted; /regen answers again)" in seen["failed"]
    assert "the answer was interrupted" in seen["failed"]
    assert is_beginning(turn["answer"], whole)
    assert turn["stop_reason"] == "interrupted"
    if agree == "y":
        assert "CPU: as asked" in seen["after"]
        assert "interrupted" not in seen["again"]
        assert (again["answer"], again["stop_reason"]) == (whole, "end")
    else:
        assert "CPU: as asked" not in seen["after"]
        assert "(interrupted; /regen answers again)" in seen["again"]
        assert again["stop_reason"] == "interrupted"
