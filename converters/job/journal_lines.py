"""The lines of a conversion's journal, and the check of which still hold.

The first line names the job. Each further line is a JSON object: a whole part of a file, with the SHA-256 of the file
up to its end; a note, a result that need not be computed again; or the name of a file whose parts so far no longer
count. Reading stops at the first line that does not parse and at the first part whose bytes have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["JOURNAL", "Kept", "Record", "forget_line", "note_line", "read_kept", "record_line", "text_line"]

JOURNAL = "journal"
_BLOCK_BYTES = 1 << 20
Note = dict[str, str | float]


@dataclass(frozen=True)
class Record:
    """One whole part: bytes `start` to `start + size_bytes` of `file`; `sha256` is that of bytes 0 to its end."""

    file: str
    part: str
    start: int
    size_bytes: int
    sha256: str


@dataclass
class Kept:
    """The parts and notes of an earlier run that are safely on the disk.

    Attributes:
        records: The parts, in order.
        notes: Notes by name.
        digests: Unfinished hash of each file up to the end of its last part.
        length: Length of the journal up to the last valid line.
    """

    records: list[Record] = field(default_factory=list)
    notes: dict[str, Note] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    length: int = 0


def text_line(value: dict[str, Any]) -> bytes:
    """Return the line of a value."""
    return json.dumps(value).encode() + b"\n"


def record_line(record: Record) -> bytes:
    """Return the line of a whole part."""
    return text_line(asdict(record))


def note_line(name: str, value: Note) -> bytes:
    """Return the line of a note."""
    return text_line({"note": name, "value": value})


def forget_line(file: str) -> bytes:
    """Return the line after which the parts of a file up to there no longer count."""
    return text_line({"forget": file})


def read_kept(directory: Path, first: bytes, progress: Callable[[int, int], None]) -> Kept:
    """Read a journal, and check the parts that it records.

    Args:
        directory: Part directory.
        first: Line of this job; the journal of another job is ignored.
        progress: Called with the bytes checked and the bytes to check.
    """
    try:
        text = (directory / JOURNAL).read_bytes()
    except OSError:
        return Kept()
    if not text.startswith(first):
        return Kept()
    lines = list(_lines(text, len(first)))
    forgotten = {value["forget"]: index for index, (value, _) in enumerate(lines) if "forget" in value}
    total = sum(path.stat().st_size for path in directory.iterdir() if path.name != JOURNAL)
    kept, sizes = Kept(length=len(first)), dict[str, int]()
    for index, (value, end) in enumerate(lines):
        if "note" in value:
            kept.notes[value["note"]] = value["value"]
        elif "file" in value and index > forgotten.get(value["file"], -1):
            record = Record(**value)
            digest = kept.digests.get(record.file, hashlib.sha256()).copy()
            if record.start != sizes.get(record.file, 0) or not _is_there(directory, record, digest):
                break
            kept.records.append(record)
            kept.digests[record.file] = digest
            sizes[record.file] = record.start + record.size_bytes
            progress(sum(sizes.values()), max(total, sum(sizes.values())))
        kept.length = end
    return kept


def _lines(text: bytes, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the value and the end of each line, up to the first invalid one."""
    # the last line may be incomplete: split leaves it, or nothing, behind the last line feed
    for line in text[start:].split(b"\n")[:-1]:
        start += len(line) + 1
        try:
            value = json.loads(line)
            whole = text_line(value) == line + b"\n" and _is_known(value)
        except (ValueError, TypeError, RecursionError):
            return
        if not whole:
            return
        yield value, start


def _is_known(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.keys() == {"note", "value"}:
        return isinstance(value["note"], str) and isinstance(value["value"], dict)
    if value.keys() == {"forget"}:
        return isinstance(value["forget"], str)
    record = Record(**value)
    return Path(record.file).name == record.file and record.start >= 0 and record.size_bytes >= 0


def _is_there(directory: Path, record: Record, digest: Any) -> bool:
    """Return whether the bytes of a part are unchanged; `digest`, the hash up to its start, is updated."""
    rest = record.size_bytes
    try:
        with (directory / record.file).open("rb", buffering=0) as file:
            file.seek(record.start)
            while rest and (block := file.read(min(rest, _BLOCK_BYTES))):
                digest.update(block)
                rest -= len(block)
    except OSError:
        return False
    return rest == 0 and bool(digest.hexdigest() == record.sha256)
