"""One safetensors file: a bounded header reader and lazy views of its tensors.

This reader replaces the `safetensors` package, whose numpy interface has no bfloat16, the type of these checkpoints.
The package also keeps the last of two equal keys, takes hundreds of megabytes for a hostile header, and copies a
whole tensor, while conversion streams rows. The format is eight bytes of length, a JSON header, and raw bytes.

Source: safetensors' README, section "Format" (0.8.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.source.strict_json import Fields, parse_json
from bimedix_edge.errors import CheckpointError

__all__ = ["FLOAT_DTYPES", "SafetensorsFile", "TensorEntry", "is_pickle", "unreadable"]

# the 70B checkpoint has 1,114 tensors and a header of about 150 KB
_MAX_HEADER_BYTES = 2 << 20
_MAX_TENSORS = 20_000
_MAX_DIMS = 8
_MAX_DIM = 1 << 40
_LENGTH_BYTES = 8
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """The header's entry for one tensor.

    Attributes:
        dtype: safetensors' name, such as `BF16`.
        shape: The dimensions, row-major.
        start: Offset of the first byte in the file.
        size_bytes: Length of the data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class SafetensorsFile:
    """An open safetensors file whose tensors are views of a memory map.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing or a pickle, or its header does not describe exactly its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(_LENGTH_BYTES + 1)
                length = self._header_length(prefix, size)
                header = prefix[_LENGTH_BYTES:] + file.read(length - 1)
        except OSError as error:
            raise unreadable(path, error) from error
        self.entries = self._parse(header, _LENGTH_BYTES + len(header), size)
        self._bytes = self._map()

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of the file; nothing is read before it is used.

        Args:
            name: A key of `entries` with a dtype of `FLOAT_DTYPES`.

        Returns:
            float32, float16 or bfloat16 (ml_dtypes), of the entry's shape; not necessarily aligned.
        """
        entry = self.entries[name]
        flat = self._bytes[entry.start : entry.start + entry.size_bytes]
        return flat.view(FLOAT_DTYPES[entry.dtype]).reshape(entry.shape)

    def _map(self) -> NDArray[np.uint8]:
        # opened now, so that the conversion reads the file that was checked, and opening cannot fail later
        try:
            return np.asarray(np.memmap(self.path, np.uint8, "r"))
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _header_length(self, prefix: bytes, size: int) -> int:
        if is_pickle(prefix):
            raise CheckpointError(
                f"{self.path.name} is a pickle, which can run any program when it is opened. It was not opened. "
                "Get the checkpoint in safetensors."
            )
        length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
        if length < 1 or length > size - _LENGTH_BYTES:
            raise self._damaged(f"a file of {size} bytes cannot hold a header of {length}")
        if length > _MAX_HEADER_BYTES:
            raise self._damaged(f"its header of {length} bytes is longer than {_MAX_HEADER_BYTES}")
        return length

    def _parse(self, header: bytes, data_start: int, size: int) -> dict[str, TensorEntry]:
        fields = Fields(parse_json(header, f"the header of {self.path.name}"), f"the header of {self.path.name}")
        names = [name for name in fields.keys() if name != "__metadata__"]  # noqa: SIM118  not a dict
        if len(names) > _MAX_TENSORS:
            raise self._damaged(f"it lists {len(names)} tensors, more than {_MAX_TENSORS}")
        entries = {name: self._entry(fields.child(name), name, data_start) for name in names}
        self._check_cover(entries, data_start, size)
        return entries

    def _entry(self, fields: Fields, name: str, data_start: int) -> TensorEntry:
        dtype = fields.text("dtype")
        shape, offsets = fields.items("shape"), fields.items("data_offsets")
        if dtype not in _ITEM_BYTES:
            raise self._damaged(f"{name[:80]} has the unknown dtype {dtype[:20]!r}")
        if len(shape) > _MAX_DIMS or len(offsets) != 2 or not all(_is_size(item) for item in (*shape, *offsets)):
            raise self._damaged(f"the shape or the offsets of {name[:80]} are not sizes")
        start, stop = offsets
        if stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise self._damaged(f"{name[:80]} has {stop - start} bytes, which is not {dtype} times {shape}")
        return TensorEntry(dtype, tuple(shape), data_start + start, stop - start)

    def _check_cover(self, entries: dict[str, TensorEntry], data_start: int, size: int) -> None:
        """Check that the tensors follow one another without overlap or hole up to the end of the file."""
        position = data_start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size_bytes)):
            if entry.start != position:
                raise self._damaged(f"{name[:80]} starts at byte {entry.start} instead of {position}")
            position += entry.size_bytes
        if position != size:
            raise self._damaged(f"its tensors end at byte {position}, but it has {size} bytes")

    def _damaged(self, fault: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} is not a whole safetensors file: {fault}. Download the checkpoint again."
        )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file of a checkpoint that the system refuses to open."""
    return CheckpointError(
        f"{path} cannot be read ({error.strerror}). Check that the checkpoint is complete and that you may read it."
    )


def is_pickle(prefix: bytes) -> bool:
    """Return whether a file starts as Python's pickles do: PyTorch's zip archives or the bare protocol.

    Args:
        prefix: The first 9 bytes or more.
    """
    # a safetensors header of 640 bytes starts like a pickle of protocol 2, but its JSON follows the length
    if prefix[4:9] == b"\0\0\0\0{":
        return False
    return prefix.startswith((_ZIP_MAGIC, *_PICKLE_PROTOCOLS))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_DIM
