"""`bimedix-edge chat` in a real terminal (a pseudo-terminal), and with piped input."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")

PROMPT = "> "
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def terminal(bundles: dict[str, Path]) -> Iterator[pexpect.spawn]:
    arguments = ["-m", "bimedix_edge.cli.main", "chat", "-m", str(bundles["F16"]), "--temperature", "0"]
    arguments += ["--ctx-size", "512"]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60, dimensions=(24, 60))
    child.expect("for\\s+more\\.")
    child.expect_exact(PROMPT)
    yield child
    child.close(force=True)


def _say(child: pexpect.spawn, line: str) -> str:
    child.sendline(line)
    child.expect_exact(PROMPT)
    # wherever the lines break
    return " ".join(ANSI.sub("", child.before or "").split())


def test_the_notice_stands_at_the_top(bundles: dict[str, Path]) -> None:
    child = pexpect.spawn(
        sys.executable, ["-m", "bimedix_edge.cli.main", "chat", "-m", str(bundles["F16"])], encoding="utf-8", timeout=60
    )
    child.expect("not\\s+for\\s+clinical\\s+use")  # wherever the lines break
    child.expect_exact(PROMPT)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_conversation_about_an_image(terminal: pexpect.spawn, samples: Path) -> None:
    assert "PNG" in _say(terminal, f"/image {samples / 'nodule_right_upper.png'}")
    assert "Yes." in _say(terminal, "Is there a nodule?")
    assert "No." in _say(terminal, "Is the heart enlarged?")
    assert "Forgotten" in _say(terminal, "/clear")
    assert "Yes." not in _say(terminal, "Is there a nodule?")


def test_mistakes_are_reported_and_the_conversation_continues(terminal: pexpect.spawn, tmp_path: Path) -> None:
    assert "cannot be read" in _say(terminal, f"/image {tmp_path / 'nowhere.png'}")
    assert "There is no command /nonsense" in _say(terminal, "/nonsense")
    assert "There is no question to answer again" in _say(terminal, "/regen")
    assert "Write /save FILE" in _say(terminal, "/save")
    assert "too many" in _say(terminal, "word " * 600)
    assert "/image FILE" in _say(terminal, "/help")


def test_ctrl_c_stops_the_answer_and_not_the_program(bundles: dict[str, Path]) -> None:
    arguments = ["chat", "-m", str(bundles["F16"]), "--temperature", "5", "--ctx-size", "65536"]
    arguments += ["--max-tokens", "60000"]
    child = pexpect.spawn(
        sys.executable,
        ["-m", "bimedix_edge.cli.main", *arguments],
        encoding="utf-8",
        timeout=60,
        codec_errors="replace",
    )
    child.expect_exact(PROMPT)
    child.sendline("Hello")
    child.expect("[^\r\n]{40}")
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect_exact(PROMPT)
    child.sendintr()
    child.expect_exact("Ctrl-D leaves")
    child.expect_exact(PROMPT)
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_saving_is_private_whole_and_never_overwrites(terminal: pexpect.spawn, samples: Path, tmp_path: Path) -> None:
    _say(terminal, f"/image {samples / 'normal.png'}")
    _say(terminal, "هل توجد عقيدة رئوية؟")
    assert "Saved" in _say(terminal, f"/save {tmp_path / 'talk.json'}")
    assert "exists" in _say(terminal, f"/save {tmp_path / 'talk.json'}")
    assert "Saved" in _say(terminal, f"/save {tmp_path / 'my talk.txt'}")
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert saved["turns"][0]["question"] == "هل توجد عقيدة رئوية؟"
    assert saved["turns"][0]["answer"] == "لا."
    assert "not for clinical use" in saved["notice"]
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o600
    assert "not for clinical use" in (tmp_path / "my talk.txt").read_text(encoding="utf-8")


def test_arabic_is_reordered_for_a_terminal_that_does_not(bundles: dict[str, Path], samples: Path) -> None:
    shown = {}
    for bidi in ("on", "off"):
        arguments = ["chat", "-m", str(bundles["F16"]), "--bidi", bidi, "-i", str(samples / "normal.png")]
        child = pexpect.spawn(
            sys.executable, ["-m", "bimedix_edge.cli.main", *arguments], encoding="utf-8", timeout=60, echo=False
        )
        child.expect_exact(PROMPT)
        shown[bidi] = _say(child, "هل توجد عقيدة رئوية؟")
        child.close(force=True)
    assert "لا." in shown["off"]
    assert "لا." not in shown["on"]
    # lam and alef, from right to left, in their joined forms
    assert ".\ufe8e\ufedf" in shown["on"] or ".\ufefb" in shown["on"]


def test_piped_input_is_answered_line_by_line(bundles: dict[str, Path], samples: Path) -> None:
    lines = f"/image {samples / 'nodule_right_upper.png'}\nIs there a nodule?\n\nIs the heart enlarged?\n"
    result = subprocess.run(
        [sys.executable, "-m", "bimedix_edge.cli.main", "chat", "-m", str(bundles["F16"]), "--temperature", "0"],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [line for line in result.stdout.splitlines() if line in ("Yes.", "No.")]
    assert answers == ["Yes.", "No."]
    assert "\x1b" not in result.stdout
