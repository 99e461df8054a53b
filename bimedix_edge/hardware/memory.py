"""The machine's memory: its size, how much of it a process can still get, and its huge pages.

Functions take the root of the file system, so that tests can simulate other machines.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from bimedix_edge.hardware.control_groups import groups
from bimedix_edge.hardware.facts import HugePages

__all__ = ["huge_pages", "memory"]

_ROOT = Path("/")
_KIB = 1024
# file names in version 2 and version 1 of control groups
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_USED = ("memory.current", "memory.usage_in_bytes")
# cached pages of files, which the kernel can drop
_CACHED = (("inactive_file", "active_file"), ("total_inactive_file", "total_active_file"))


def memory(root: Path = _ROOT) -> tuple[int | None, int | None]:
    """Return the machine's memory and the part that is available, in bytes; None for unknown values.

    Control groups lower both: by their limits, and by what they have used already.
    """
    if sys.platform == "win32":
        return _windows_memory()
    fields = _meminfo(root)
    if "MemTotal" not in fields:
        if "SC_PHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        return None, None
    total, available = fields["MemTotal"] * _KIB, fields["MemAvailable"] * _KIB
    for group in groups("memory", root):
        limit, left = _limit(group)
        total, available = min(total, limit or total), min(available, available if left is None else left)
    return total, available


def huge_pages(root: Path = _ROOT) -> HugePages | None:
    """Return the huge pages of Linux; None on other systems."""
    fields = _meminfo(root)
    if not fields:
        return None
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    chosen = re.search(r"\[(\w+)\]", path.read_text()) if path.exists() else None
    page_bytes = fields.get("Hugepagesize", 0) * _KIB
    return HugePages(chosen.group(1) if chosen else None, page_bytes, fields.get("HugePages_Free", 0))


def _limit(group: Path) -> tuple[int | None, int | None]:
    """Return the limit of a control group and the memory left within it; None where it has no limit."""
    for limit_name, used_name, cached_names in zip(_LIMITS, _USED, _CACHED, strict=True):
        path = group / limit_name
        if not path.exists() or (text := path.read_text().strip()) == "max":
            continue
        limit, used = int(text), int((group / used_name).read_text())
        found = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE))
        cached = sum(int(found.get(name, 0)) for name in cached_names)
        return limit, max(0, limit - max(0, used - cached))
    return None, None


def _meminfo(root: Path) -> dict[str, int]:
    path = root / "proc/meminfo"
    if not path.exists():
        return {}
    found = re.findall(r"^(\w+):\s+(\d+)(?: kB)?$", path.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


class _MemoryStatus(ctypes.Structure):
    """Windows's MEMORYSTATUSEX, sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows_memory() -> tuple[int | None, int | None]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if sys.platform != "win32" or not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.total), int(status.available)
