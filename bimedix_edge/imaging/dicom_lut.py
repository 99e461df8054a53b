"""The look-up tables of a DICOM header."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.errors import ImageError
from bimedix_edge.imaging.grey import Lut

__all__ = ["look_up_table"]


def look_up_table(dataset: Any, item: Any, name: str, *, signed: bool = False) -> Lut:
    """Return the table of an item of a Modality or VOI LUT Sequence.

    Args:
        dataset: The pydicom dataset that holds it.
        item: The item, with `LUTDescriptor` and `LUTData`.
        name: The file's name in messages.
        signed: Whether the table's input can be negative. Then its first mapped value is signed, too; a reader that
            does not know this, as with unsigned pixels and a negative rescale intercept, reads it as unsigned.

    Raises:
        ImageError: It has too few entries, or fewer than 8 or more than 16 bits.

    Source: DICOM PS3.3 C.11.1.1 (modality), C.11.2.1.1 (VOI).
    """
    n_entries, first, bits = (int(value) for value in item.LUTDescriptor)
    n_entries = n_entries or 1 << 16
    entries = _entries(dataset, item.LUTData, n_entries, bits)[:n_entries]
    if len(entries) < n_entries or not 8 <= bits <= 16:
        raise ImageError(
            f"{name} has a wrong look-up table: {len(entries)} of {n_entries} entries, {bits} bits (8 to 16 are "
            "allowed). Export it again."
        )
    return Lut(first - (1 << 16) if signed and first >= 1 << 15 else first, bits, entries)


def _entries(dataset: Any, data: Any, n_entries: int, bits: int) -> NDArray[np.float64]:
    little = dataset.original_encoding[1] is not False
    words = np.frombuffer(data, "<u2" if little else ">u2") if isinstance(data, bytes) else np.asarray(data, np.uint16)
    if bits == 8 and len(words) == (n_entries + 1) // 2 and n_entries > 1:
        # two entries per word, the first in its low byte, as 8-bit pixels are stored
        return words.astype("<u2").view(np.uint8).astype(np.float64)
    return words.astype(np.float64)
