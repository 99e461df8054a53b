"""Conversions that fail on purpose, each followed by one that resumes; test_crashes.py preloads failing_disk.c.

    python crashes.py LIBRARY CHECKPOINT WORK count             writes and bytes of a whole conversion
    python crashes.py LIBRARY CHECKPOINT WORK write|die N…      at the N-th write: an error, or SIGKILL
    python crashes.py LIBRARY CHECKPOINT WORK full N…           the disk is full after N bytes
    python crashes.py LIBRARY CHECKPOINT WORK kill SEED COUNT           SIGKILL at COUNT random moments

Importing takes longer than converting, so each conversion is a fork of this process. Prints one JSON object a case.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bimedix_edge.bundle import verify_bundle
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.errors import BimedixEdgeError

MODES = {"write": 1, "full": 2, "die": 3, "count": 1}
KIND = "Q4_K_M"


class Crashes:
    def __init__(self, library: str, checkpoint: Path, work: Path) -> None:
        self.disk = ctypes.CDLL(library)
        for name in ("calls", "bytes"):
            getattr(self.disk, f"failing_disk_{name}").restype = ctypes.c_long
        self.disk.failing_disk_begin.argtypes = [ctypes.c_int, ctypes.c_long]
        self.checkpoint, self.work, self.target = checkpoint, work, work / "out"
        self.expected = convert(checkpoint, work / "expected", ConvertOptions(file_type=KIND, name="crashes")).files

    def count(self) -> dict[str, int]:
        self.disk.failing_disk_begin(MODES["count"], -1)
        convert(self.checkpoint, self.target, ConvertOptions(file_type=KIND, name="crashes"))
        counted = {name: getattr(self.disk, f"failing_disk_{name}")() for name in ("calls", "bytes")}
        self.disk.failing_disk_begin(0, 0)
        shutil.rmtree(self.target)
        return counted

    def start(self, mode: int, limit: int) -> int:
        """Begin a conversion in a separate process and return its id."""
        if child := os.fork():
            return child
        code = 70
        with contextlib.suppress(BaseException):
            try:
                self.disk.failing_disk_begin(mode, limit)
                convert(self.checkpoint, self.target, ConvertOptions(file_type=KIND, name="crashes"))
                code = 0
            except BimedixEdgeError as error:
                code = error.exit_code
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(code)

    def check(self, case: str, child: int) -> dict[str, Any]:
        """Wait for a conversion that fails, check its leftovers, and convert again."""
        outcome = _wait(child)
        left = sorted(path.name for path in self.work.iterdir() if path.name != "expected")
        visible = [name for name in left if not name.startswith(".")]
        kept = sum(path.stat().st_size for path in (self.work / ".out.part").glob("*.*"))
        found = {"case": case, "outcome": outcome, "left": left, "kept_bytes": kept}
        # a kill may come after the last rename, before the process has ended
        found["whole_or_none"] = visible == ["out"] and self._is_whole() if visible else outcome != 0
        if not visible:
            found["resumed"] = _wait(self.start(0, 0))
        found["same"] = self._is_whole()
        found["clean"] = sorted(path.name for path in self.work.iterdir()) == ["expected", "out"]
        shutil.rmtree(self.target, ignore_errors=True)
        return found

    def _is_whole(self) -> bool:
        with contextlib.suppress(BimedixEdgeError):
            return verify_bundle(self.target).files == self.expected
        return False


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed(crashes: Crashes, rng: random.Random, seconds: float) -> int:
    """Kill a conversion, and perhaps the one that resumes it; return the id of the last, which is killed."""
    for last in (rng.random() < 0.7, True):
        child = crashes.start(0, 0)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if last:
            return child
        os.waitpid(child, 0)
        if crashes.target.exists():
            shutil.rmtree(crashes.target)
    raise AssertionError


def _kill_many(crashes: Crashes, rng: random.Random, count: int) -> None:
    """Kill until `count` kills have hit a running conversion; also check those that came after its end."""
    start = time.perf_counter()
    crashes.check("whole", crashes.start(0, 0))
    seconds = time.perf_counter() - start
    met = index = 0
    while met < count and index < 4 * count:
        found = crashes.check(f"kill {index}", _killed(crashes, rng, seconds))
        print(json.dumps(found), flush=True)
        met += found["outcome"] != 0
        index += 1


def main() -> None:
    library, checkpoint, work, mode, *given = sys.argv[1:]
    crashes = Crashes(library, Path(checkpoint), Path(work))
    if mode == "count":
        print(json.dumps(crashes.count()))
        return
    if mode == "kill":
        _kill_many(crashes, random.Random(int(given[0])), int(given[1]))
        return
    for limit in map(int, given):
        print(json.dumps(crashes.check(f"{mode} {limit}", crashes.start(MODES[mode], limit))), flush=True)


if __name__ == "__main__":
    main()
