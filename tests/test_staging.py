"""Files and directories appear whole or not at all: crashes, full disks, several writers at once."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bimedix_edge.errors import HardwareError, UsageError
from bimedix_edge.staging import staged_directory, write_file


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_private(tmp_path: Path) -> None:
    write_file(tmp_path / "answer.txt", "نعم".encode())
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8") == "نعم"
    assert stat.S_IMODE((tmp_path / "answer.txt").stat().st_mode) == 0o600
    assert _names(tmp_path) == ["answer.txt"]


def test_a_file_in_a_missing_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        write_file(tmp_path / "nowhere" / "x", b"x")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    code = f"""
import resource, signal
from pathlib import Path
from bimedix_edge.errors import HardwareError
from bimedix_edge.staging import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_file(Path({str(tmp_path / "x")!r}), b"n" * 5000)
except HardwareError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "There is no room to write" in result.stdout
    assert (tmp_path / "x").read_bytes() == b"old"
    assert _names(tmp_path) == ["x"]


def test_a_directory_appears_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with staged_directory(target) as part:
        (part / "a").write_text("1")
        assert not target.exists()
        assert part.parent == target.parent
    assert (target / "a").read_text() == "1"
    assert _names(target.parent) == ["bundle"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "bundle") as part:
        (part / "a").write_text("1")
        raise RuntimeError
    assert _names(tmp_path) == []


def test_an_existing_target_is_kept_without_replace(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a").write_text("old")
    with pytest.raises(UsageError, match="exists"), staged_directory(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    with staged_directory(tmp_path / "bundle", replace=True) as part:
        (part / "a").write_text("new")
        assert (tmp_path / "bundle" / "a").read_text() == "old"
    assert (tmp_path / "bundle" / "a").read_text() == "new"
    assert _names(tmp_path) == ["bundle"]


def test_a_second_writer_learns_which_process_is_first(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from bimedix_edge.errors import UsageError
from bimedix_edge.staging import staged_directory
try:
    with staged_directory(Path({str(tmp_path / "bundle")!r})): pass
except UsageError as error:
    print(error)
"""
    with staged_directory(tmp_path / "bundle"):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"process {os.getpid()} is writing it" in result.stdout


def test_kill_9_leaves_no_target_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from bimedix_edge.staging import staged_directory
with staged_directory(Path({str(tmp_path / "bundle")!r})) as part:
    (part / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "bundle").exists()
    with staged_directory(tmp_path / "bundle") as part:
        assert _names(part) == []
        (part / "whole").write_text("y")
    assert _names(tmp_path) == ["bundle"]
    assert _names(tmp_path / "bundle") == ["whole"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".bundle.old").mkdir()
    (tmp_path / ".bundle.old" / "a").write_text("old")
    with pytest.raises(UsageError, match="exists"), staged_directory(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle" / "a").read_text() == "old"


def test_one_of_several_processes_writes_and_the_others_are_refused(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from bimedix_edge.errors import UsageError
from bimedix_edge.staging import staged_directory
try:
    with staged_directory(Path({str(tmp_path / "bundle")!r})) as part:
        (part / "a").write_text("x")
        time.sleep(0.3)
    print("written")
except UsageError:
    print("refused")
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outcomes = sorted(process.communicate()[0].strip() for process in processes)
    assert outcomes == [*["refused"] * 5, "written"]
    assert _names(tmp_path) == ["bundle"]


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Choose another place"), staged_directory(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_a_full_disk_is_a_hardware_error(tmp_path: Path) -> None:
    with pytest.raises(HardwareError), staged_directory(tmp_path / "bundle") as part:
        raise OSError(28, "No space left on device", str(part / "a"))
    assert _names(tmp_path) == []
