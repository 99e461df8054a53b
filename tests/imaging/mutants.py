"""Damages pictures in thousands of ways and measures what decoding them costs; runs as a process of its own."""

from __future__ import annotations

import io
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from imaging.phantoms import SYNTAXES, dataset, stored_values, written
from PIL import Image

from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.imaging import isolation
from bimedix_edge.imaging.picture import load_picture


def originals(kind: str) -> list[bytes]:
    """Return undamaged files of one kind, each of another sort."""
    rng = np.random.default_rng(2)
    colour = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 4096, (48, 64), dtype=np.uint16))
    sorts: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(colour, {}), (colour.convert("RGBA"), {}), (colour.convert("P"), {}), (grey16, {})],
        "JPEG": [
            (colour, {}),
            (colour, {"progressive": True}),
            (colour.convert("CMYK"), {}),
            (colour.convert("L"), {}),
        ],
        "TIFF": [
            (colour, {}),
            (grey16, {}),
            *((colour, {"compression": it}) for it in ("tiff_lzw", "jpeg", "packbits")),
        ],
    }
    if kind == "DICOM":
        window = {"WindowCenter": 100, "WindowWidth": 200, "RescaleSlope": 2, "RescaleIntercept": -10}
        return [written(dataset(stored_values(8, signed=False), 8, **window), syntax) for syntax in SYNTAXES]
    made = []
    for image, options in sorts[kind]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made.append(buffer.getvalue())
    return made


def mutant(data: bytes, rng: np.random.Generator, *, keep: int) -> bytes:
    """Return `data` damaged: bytes changed, set to extremes, cut off or doubled; the first `keep` stay."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(keep, max(len(damaged), keep + 1)))
        if rng.random() < 0.5:  # most damage to headers matters
            place = min(keep + int(rng.integers(0, 600)), len(damaged) - 1)
        length = int(rng.integers(1, 9))
        match int(rng.integers(0, 6)):
            case 0 | 1:
                damaged[place : place + 1] = bytes([int(rng.integers(0, 256))])
            case 2:
                damaged[place : place + length] = b"\xff" * length
            case 3:
                damaged[place : place + length] = b"\0" * length
            case 4:
                damaged = damaged[: max(place, keep)] if rng.random() < 0.3 else damaged
            case _:
                damaged[place:place] = damaged[keep : keep + 40 * length]
    return bytes(damaged)


def run(kind: str, count: int, seed: int) -> dict[str, Any]:
    """Decode `count` mutants; return outcomes, the slowest time, and the peak memory of both processes."""
    rng = np.random.default_rng(seed)
    sources = originals(kind)
    keep = 132 if kind == "DICOM" else 4
    outcomes: Counter[str] = Counter()
    slowest, worker_peak, strange = 0.0, 0, []
    for number in range(count):
        data = mutant(sources[number % len(sources)], rng, keep=keep)
        start = time.perf_counter()
        try:
            load_picture(data)
            outcomes["read"] += 1
        except BimedixEdgeError as error:
            outcomes[type(error).__name__] += 1
            outcomes["crashed"] += "decoder crash" in str(error)
            outcomes["timed out"] += "takes too long" in str(error)
        except Exception as error:
            strange.append(f"{number}: {error!r}")
        slowest = max(slowest, time.perf_counter() - start)
        worker_peak = max(worker_peak, _worker_peak())
    return {
        "kind": kind,
        "outcomes": dict(outcomes),
        "strange": strange,
        "slowest_s": round(slowest, 2),
        "peak_bytes": peak_bytes("self"),
        "worker_peak_bytes": worker_peak,
    }


def peak_bytes(process: int | str) -> int:
    """Return the peak memory of a process; `ru_maxrss` would include its parent's."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _worker_peak() -> int:
    pid = isolation.worker_pid()
    return 0 if pid is None else peak_bytes(pid)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
