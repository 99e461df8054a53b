"""The processor: its name, the cores that this process may use, its instruction sets for matrix products.

Functions take the root of the file system, so that tests can simulate other machines.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from pathlib import Path

from bimedix_edge.hardware.control_groups import groups

__all__ = ["count_cores", "cpu_name", "instruction_sets"]

_ROOT = Path("/")
# Linux lists an instruction set only if it saves its registers
_LINUX = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
}
_MACOS = {
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX-512",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
# IsProcessorFeaturePresent, winnt.h: it does not know VNNI and AMX
_WINDOWS = {40: "AVX2", 41: "AVX-512", 43: "dotprod"}


def cpu_name(root: Path = _ROOT) -> str:
    """Return the processor's name."""
    if match := re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(root), re.MULTILINE):
        return match.group(1)
    return platform.processor() or platform.machine()


def instruction_sets(root: Path = _ROOT) -> tuple[str, ...] | None:
    """Return the instruction sets for matrix products that the system has enabled; None when unknown."""
    if sys.platform == "darwin":
        return tuple(label for name, label in _MACOS.items() if _sysctl(name) == 1)
    if sys.platform == "win32":
        present = ctypes.WinDLL("kernel32").IsProcessorFeaturePresent
        return tuple(label for number, label in _WINDOWS.items() if present(number))
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(root), re.MULTILINE)
    if match is None:
        return None
    flags = set(match.group(1).split())
    return tuple(label for flag, label in _LINUX.items() if flag in flags)


def count_cores(root: Path = _ROOT) -> int:
    """Return the number of usable cores; llama.cpp's matmuls gain nothing from a core's second hardware thread."""
    if sys.platform == "darwin":
        return _sysctl("hw.physicalcpu") or os.cpu_count() or 1
    if sys.platform != "linux":
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    quotas = [quota for group in groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, min([len(siblings), *map(math.ceil, quotas)]))


def _quota(group: Path) -> float | None:
    """Return how many processors a control group may use at once; None if it has no limit."""
    if (path := group / "cpu.max").exists():
        quota, period = path.read_text().split()
    elif (path := group / "cpu.cfs_quota_us").exists():
        quota, period = path.read_text().strip(), (group / "cpu.cfs_period_us").read_text()
    else:
        return None
    # "max" in version 2, -1 in version 1
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _cpuinfo(root: Path) -> str:
    path = root / "proc/cpuinfo"
    return path.read_text() if path.exists() else ""


def _sysctl(name: str) -> int:
    """Return an integer of macOS's kernel; 0 if it does not know the name."""
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.value
