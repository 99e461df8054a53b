"""What of an interrupted conversion is on the disk for certain, so that the next run of it goes on from there.

A part directory holds the files being made and `journal`: a line for the job, then a line for each part of a file that
is whole, with the SHA-256 of its bytes. A line is written only after the data it speaks of has reached the disk. The
next run keeps the parts whose bytes still have their hash, throws away what follows, and goes on; another job, another
version of this program, or a journal that does not parse means that nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from bimedix_edge.converters.parts import Part
from bimedix_edge.converters.source_hashes import file_states
from bimedix_edge.errors import BimedixEdgeError, HardwareError

__all__ = ["Journal", "JournalledFile", "job_identity", "open_journal"]

FORMAT = 1
_JOURNAL = "journal"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Record:
    """One whole part: bytes `start` to `start + size_bytes` of `file`."""

    file: str
    part: str
    start: int
    size_bytes: int
    sha256: str


class Journal:
    """The journal of one part directory; see `open_journal`.

    Args:
        directory: the part directory, locked for this process.
        kept: the records that are true, in order.
        lines: the journal, open behind their lines.
    """

    def __init__(self, directory: Path, kept: list[_Record], lines: IO[bytes]) -> None:
        self._directory = directory
        self._records = kept
        self._lines = lines
        self._waiting: list[_Record] = []
        self._files: dict[str, IO[bytes]] = {}
        # syncing takes about as long as computing: a thread does it while the next parts are computed
        self._thread = ThreadPoolExecutor(1)
        self._sync: Future[None] | None = None

    @property
    def kept_bytes(self) -> int:
        """Return how much of the result is on the disk."""
        return sum(record.size_bytes for record in self._records)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[JournalledFile]:
        """Open a file of the part directory behind its last whole part; after the block it is on the disk.

        Args:
            name: of the file.

        Raises:
            OSError: the disk is full or fails.
        """
        kept = [record for record in self._records if record.file == name]
        with (self._directory / name).open("ab", buffering=0) as file:
            self._files[name] = file
            try:
                yield JournalledFile(name, file, kept, self._add)
            except BaseException:
                # what is whole is worth keeping, whatever went wrong with the rest
                with contextlib.suppress(OSError):
                    self._settle()
                raise
            self._settle()

    def finish(self) -> None:
        """Remove the journal, since the directory is whole."""
        self._thread.shutdown()
        self._lines.close()
        (self._directory / _JOURNAL).unlink()

    def abandon(self, *, keep: bool) -> None:
        """Close the journal of a conversion that failed.

        Args:
            keep: whether the next run may go on from here; otherwise the directory is emptied.
        """
        self._thread.shutdown()
        with contextlib.suppress(OSError):
            self._lines.close()
        if not keep or not self._records:
            _empty(self._directory)

    def _add(self, record: _Record) -> None:
        """Note a whole part; its line follows when its bytes are on the disk, which this call does not wait for."""
        self._waiting.append(record)
        if self._sync is None or self._sync.done():
            self._begin_sync()

    def _begin_sync(self) -> Future[None]:
        if self._sync is not None:
            self._sync.result()  # raises what the disk said
        batch, self._waiting = self._waiting, []
        self._sync = self._thread.submit(self._write_lines, batch)
        return self._sync

    def _settle(self) -> None:
        self._begin_sync().result()

    def _write_lines(self, batch: list[_Record]) -> None:
        for name in {record.file for record in batch}:
            os.fsync(self._files[name].fileno())
        _append(self._lines, b"".join(_line(asdict(record)) for record in batch))
        self._records += batch


class JournalledFile:
    """A file that grows part by part; see `Journal.file`."""

    def __init__(self, name: str, file: IO[bytes], kept: list[_Record], add: Callable[[_Record], None]) -> None:
        self._name = name
        self._file = file
        self._add = add
        self._start = sum(record.size_bytes for record in kept)
        self._size = 0
        self._digest = hashlib.sha256()
        self.n_parts = len(kept)

    def write(self, data: memoryview) -> None:
        """Append some bytes of the next part.

        Raises:
            OSError: the disk is full or fails.
        """
        rest = data
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self._digest.update(data)
        self._size += len(data)

    def end_part(self, name: str) -> None:
        """State that what was appended since the last call is a whole part.

        Raises:
            OSError: the disk is full or fails, perhaps with an earlier part.
        """
        self._add(_Record(self._name, name, self._start, self._size, self._digest.hexdigest()))
        self._start, self._size, self._digest = self._start + self._size, 0, hashlib.sha256()
        self.n_parts += 1


@contextlib.contextmanager
def open_journal(
    directory: Path, job: str, *, fresh: bool = False, progress: Callable[[int, int], None] | None = None
) -> Iterator[Journal]:
    """Go on with an interrupted job, or begin it; when the block ends well the journal is gone.

    Args:
        directory: a part directory; see `staging.staged_directory`. Whatever the journal does not vouch for is removed.
        job: identifies everything that the bytes of the result depend on.
        fresh: whether to keep nothing.
        progress: called with the bytes checked and the bytes to check, while the kept parts are read again.

    Raises:
        OSError: the disk is full or fails.
    """
    first = _line({"format": FORMAT, "job": job})
    kept, length = ([], 0) if fresh else _kept(directory, first, progress or _silent)
    _cut(directory, kept)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context((directory / _JOURNAL).open("r+b" if kept else "wb", buffering=0))
        if kept:
            lines.truncate(length)
            lines.seek(length)
        else:
            _append(lines, first)
        journal = Journal(directory, kept, lines)
        try:
            yield journal
            journal.finish()
        except BaseException as error:
            journal.abandon(keep=isinstance(error, HardwareError) or not isinstance(error, BimedixEdgeError))
            raise


def job_identity(sources: Mapping[str, Path], files: Mapping[str, Sequence[Part]], version: str) -> str:
    """Return a hash that differs wherever the bytes of the result could.

    Args:
        sources: every file that is read, by name; told by size and time, since hashing them takes minutes.
        files: the parts of each file to write; the first, its header, holds the names and types of the others.
        version: of this program.

    Raises:
        CheckpointError: a source is not there.
    """
    heads = {name: _sha256(parts[0]) for name, parts in files.items()}
    engines = [importlib.metadata.version(name) for name in ("llama-cpp-python", "numpy")]
    facts = [version, engines, file_states(sources), heads]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sha256(part: Part) -> str:
    return hashlib.sha256(b"".join(step() for step in part.steps())).hexdigest()


def _kept(directory: Path, first: bytes, progress: Callable[[int, int], None]) -> tuple[list[_Record], int]:
    """Return the records of this job whose bytes are on the disk, and the length of the journal up to them."""
    try:
        text = (directory / _JOURNAL).read_bytes()
    except OSError:
        return [], 0
    if not text.startswith(first):
        return [], 0
    kept: list[_Record] = []
    length, sizes = len(first), dict[str, int]()
    total = sum(path.stat().st_size for path in directory.iterdir() if path.name != _JOURNAL)
    # the last line may be torn: split leaves it, or nothing, behind the last line feed
    for line in text[length:].split(b"\n")[:-1]:
        record = _record(line)
        if record is None or record.start != sizes.get(record.file, 0) or not _is_there(directory, record):
            break
        kept.append(record)
        length += len(line) + 1
        sizes[record.file] = record.start + record.size_bytes
        progress(sum(sizes.values()), max(total, sum(sizes.values())))
    return kept, length


def _record(line: bytes) -> _Record | None:
    try:
        record = _Record(**json.loads(line))
        whole = _line(asdict(record)) == line + b"\n" and Path(record.file).name == record.file
        return record if whole and record.start >= 0 and record.size_bytes >= 0 else None
    except (ValueError, TypeError, RecursionError):
        return None


def _is_there(directory: Path, record: _Record) -> bool:
    digest, rest = hashlib.sha256(), record.size_bytes
    try:
        with (directory / record.file).open("rb", buffering=0) as file:
            file.seek(record.start)
            while rest and (block := file.read(min(rest, _BLOCK_BYTES))):
                digest.update(block)
                rest -= len(block)
    except OSError:
        return False
    return rest == 0 and digest.hexdigest() == record.sha256


def _cut(directory: Path, kept: list[_Record]) -> None:
    """Remove what the journal does not vouch for."""
    sizes: dict[str, int] = {}
    for record in kept:
        sizes[record.file] = record.start + record.size_bytes
    _empty(directory, sizes.keys() | {_JOURNAL})
    for name, size in sizes.items():
        os.truncate(directory / name, size)


def _empty(directory: Path, but: Set[str] = frozenset()) -> None:
    for path in directory.iterdir():
        if path.name in but:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _append(lines: IO[bytes], data: bytes) -> None:
    while data:
        data = data[lines.write(data) or 0 :]
    os.fsync(lines.fileno())


def _silent(_done: int, _total: int) -> None:
    return None
