"""Pictures in a real terminal (a pseudo-terminal): which series, wrong answers, Ctrl-C, names with escapes in them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from imaging.phantoms import dataset, saved, stored_values

from bimedix_edge.cli.text import one_line

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals need pexpect")

MAIN = ["-m", "bimedix_edge.cli.main"]


def _spawn(*arguments: str | Path, columns: int = 80) -> pexpect.spawn:
    words = [*MAIN, *map(str, arguments)]
    # a copy of the environment: readline writes the width of pytest's terminal into the inherited one
    environment = dict(os.environ)
    return pexpect.spawn(
        sys.executable, words, encoding="utf-8", timeout=120, dimensions=(24, columns), env=environment
    )


def _rest(child: pexpect.spawn) -> tuple[str, int]:
    child.expect(pexpect.EOF)
    child.close()
    return child.before or "", child.exitstatus


@pytest.fixture
def two_series(tmp_path: Path) -> Path:
    folder = tmp_path / "صور"
    folder.mkdir()
    for number, part in ((1, "CHEST"), (2, "ABDOMEN")):
        made = dataset(stored_values(8, signed=False), 8, BodyPartExamined=part)
        made.SeriesNumber, made.SeriesInstanceUID = number, f"1.2.{number}"
        (folder / str(number)).write_bytes(saved(made))
    return folder


def test_the_question_for_a_series_is_repeated_until_the_answer_is_valid(two_series: Path) -> None:
    child = _spawn("image", two_series, columns=40)
    child.expect("Which series")
    assert "1) CT, CHEST: 1 picture of 52 x 40\r\n2) CT, ABDOMEN" in child.before
    for wrong in ("3", "0", "abc", "\x1b[31m"):
        child.sendline(wrong)
        child.expect("is not a number from\\s+1 to 2")
        child.expect("Which series")
    child.sendline("2")
    shown, code = _rest(child)
    assert code == 0
    assert "ABDOMEN" in shown
    assert max(len(line) for line in shown.replace("\r", "").split("\n")) <= 40


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_leaving_the_question_ends_with_130(two_series: Path, key: str) -> None:
    child = _spawn("image", two_series)
    child.expect("Which series: ")
    child.send(key)
    shown, code = _rest(child)
    assert code == 130
    assert "\nbimedix-edge: interrupted" in shown


def test_ctrl_c_at_the_question_does_not_end_a_chat(bundles: dict[str, Path], two_series: Path) -> None:
    child = _spawn("chat", "-m", bundles["F16"])
    child.expect("for\\s+more\\.")
    child.expect_exact("> ")
    child.sendline(f"/image {two_series}")
    child.expect("Which series: ")
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect_exact("> ")
    child.sendline(f"/image {two_series / '1'} lungs")
    child.expect("'lungs' is not a window")
    child.expect_exact("> ")
    child.sendeof()
    assert _rest(child)[1] == 0


def test_a_name_sends_nothing_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31mred\nline\u202egnp.dcm"
    path.write_bytes(saved(dataset(stored_values(8, signed=False), 8, WindowCenter=1, WindowWidth=0)))
    shown, code = _rest(_spawn("image", path))
    assert code == 3
    assert r"bimedix-edge: a\x1b[31mred\nline\u202egnp.dcm has a window that cannot be used: its width is 0" in shown
    assert shown.count("\n") == 1
    assert one_line("أشعة صدر\u200f.dcm") == "أشعة صدر\u200f.dcm"
