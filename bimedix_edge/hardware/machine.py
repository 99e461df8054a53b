"""Inspects this machine without loading an engine."""

from __future__ import annotations

import platform

from bimedix_edge.hardware.facts import Machine
from bimedix_edge.hardware.memory import huge_pages, memory
from bimedix_edge.hardware.processor import count_cores, cpu_name, instruction_sets

__all__ = ["inspect_machine"]


def inspect_machine() -> Machine:
    """Return the facts about this machine."""
    total, available = memory()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        n_cores=count_cores(),
        memory_bytes=total,
        available_bytes=available,
        features=instruction_sets(),
        huge_pages=huge_pages(),
    )
