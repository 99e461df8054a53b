"""Records which parts of a conversion are safely on the disk, so that the next run resumes from there.

A part directory has the unfinished files and `journal`: a line for the job, then a line for each whole part of a file,
with the SHA-256 of the file up to its end, and for each note. A line is written only after its data has reached the
disk. The next run keeps the parts whose bytes still have their hash, drops the rest, and resumes. It keeps nothing of
another job, of another version of this program, or if the journal does not parse. `journal_lines.py` has the lines.
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
from pathlib import Path
from typing import IO, Any

from bimedix_edge.converters.job.journal_lines import (
    JOURNAL,
    Kept,
    Note,
    Record,
    forget_line,
    note_line,
    read_kept,
    record_line,
    text_line,
)
from bimedix_edge.converters.parts import Part
from bimedix_edge.converters.source.hashes import file_states
from bimedix_edge.errors import BimedixEdgeError, HardwareError
from bimedix_edge.staging import forget_cached

__all__ = ["Journal", "JournalledFile", "job_identity", "open_journal"]

FORMAT = 2


class Journal:
    """The journal of one part directory; see `open_journal`.

    Args:
        directory: The part directory, locked for this process.
        kept: What an earlier run left.
        lines: The journal, open behind the lines of `kept`.
    """

    def __init__(self, directory: Path, kept: Kept, lines: IO[bytes]) -> None:
        self._directory = directory
        self._records = kept.records
        self._notes = kept.notes
        self._digests = kept.digests
        self._lines = lines
        self._waiting: list[Record] = []
        self._files: dict[str, IO[bytes]] = {}
        # syncing takes about as long as computing: a thread does it while the next parts are computed
        self._thread = ThreadPoolExecutor(1)
        self._sync: Future[None] | None = None

    @property
    def kept_bytes(self) -> int:
        """Return the size of the parts that are on the disk."""
        return sum(record.size_bytes for record in self._records)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[JournalledFile]:
        """Open a file of the part directory behind its last whole part; after the block it is on the disk.

        Args:
            name: Name of the file.

        Raises:
            OSError: The disk is full or fails.
        """
        kept = [record for record in self._records if record.file == name]
        with (self._directory / name).open("ab", buffering=0) as file:
            self._files[name] = file
            try:
                yield JournalledFile(name, file, kept, self._digests.setdefault(name, hashlib.sha256()), self._add)
            except BaseException:
                # whole parts are worth keeping, whatever the error
                with contextlib.suppress(OSError):
                    self._settle()
                raise
            self._settle()

    def sha256(self, name: str) -> str:
        """Return the hash of a file as written, hexadecimal; the hash of no bytes if it was not begun."""
        return str(self._digests.get(name, hashlib.sha256()).hexdigest())

    def note(self, name: str) -> Note | None:
        """Return the note of this name, from this run or an interrupted one."""
        return self._notes.get(name)

    def add_note(self, name: str, value: Note) -> None:
        """Keep a note for the next run; call this only between files.

        Raises:
            OSError: The disk is full or fails.
        """
        _append(self._lines, note_line(name, value))
        self._notes[name] = value

    def forget(self, name: str) -> None:
        """Remove a file, if it was begun, so that it can be written again; call this only between files.

        Raises:
            OSError: The disk is full or fails.
        """
        if name not in self._digests:
            return
        _append(self._lines, forget_line(name))
        self._records = [record for record in self._records if record.file != name]
        del self._digests[name]
        (self._directory / name).unlink()

    def finish(self) -> None:
        """Remove the journal: the directory is complete."""
        self._thread.shutdown()
        self._lines.close()
        (self._directory / JOURNAL).unlink()

    def abandon(self, *, keep: bool) -> None:
        """Close the journal of a conversion that failed.

        Args:
            keep: Whether the next run may resume from here; otherwise the directory is emptied.
        """
        self._thread.shutdown()
        with contextlib.suppress(OSError):
            self._lines.close()
        if not keep or not self._records:
            _empty(self._directory)

    def _add(self, record: Record) -> None:
        """Record a whole part; its line follows when its bytes are on the disk, without blocking this call."""
        self._waiting.append(record)
        if self._sync is None or self._sync.done():
            self._begin_sync()

    def _begin_sync(self) -> Future[None]:
        if self._sync is not None:
            self._sync.result()  # raises the disk's error
        batch, self._waiting = self._waiting, []
        self._sync = self._thread.submit(self._write_lines, batch)
        return self._sync

    def _settle(self) -> None:
        self._begin_sync().result()

    def _write_lines(self, batch: list[Record]) -> None:
        for name in {record.file for record in batch}:
            os.fsync(self._files[name].fileno())
            # it is next read from the disk; where memory is little, the source's pages need the room
            forget_cached(self._directory / name)
        _append(self._lines, b"".join(record_line(record) for record in batch))
        self._records += batch


class JournalledFile:
    """A file that grows part by part; see `Journal.file`."""

    def __init__(
        self, name: str, file: IO[bytes], kept: list[Record], digest: Any, add: Callable[[Record], None]
    ) -> None:
        self._name = name
        self._file = file
        self._add = add
        self._start = sum(record.size_bytes for record in kept)
        self._size = 0
        self._digest = digest
        self.n_parts = len(kept)

    def write(self, data: memoryview) -> None:
        """Append some bytes of the next part.

        Raises:
            OSError: The disk is full or fails.
        """
        rest = data
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self._digest.update(data)
        self._size += len(data)

    def end_part(self, name: str) -> None:
        """State that the bytes since the last call are a whole part.

        Raises:
            OSError: The disk is full or fails, possibly for an earlier part.
        """
        self._add(Record(self._name, name, self._start, self._size, self._digest.hexdigest()))
        self._start, self._size = self._start + self._size, 0
        self.n_parts += 1


@contextlib.contextmanager
def open_journal(
    directory: Path, job: str, *, fresh: bool = False, progress: Callable[[int, int], None] | None = None
) -> Iterator[Journal]:
    """Resume an interrupted job, or begin it; the journal is removed when the block succeeds.

    Args:
        directory: Part directory; see `staging.staged_directory`. Files that the journal does not record are removed.
        job: Identifies everything that the bytes of the result depend on.
        fresh: Whether to keep nothing.
        progress: Called with the bytes checked and the bytes to check, while the kept parts are read again.

    Raises:
        OSError: The disk is full or fails.
    """
    first = text_line({"format": FORMAT, "job": job})
    kept = Kept() if fresh else read_kept(directory, first, progress or _silent)
    _cut(directory, kept.records)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context((directory / JOURNAL).open("r+b" if kept.length else "wb", buffering=0))
        if kept.length:
            lines.truncate(kept.length)
            lines.seek(kept.length)
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
    """Return a hash that differs whenever the bytes of the result could differ.

    Args:
        sources: Every source file, by name; identified by size and time, since hashing takes minutes.
        files: The parts of each file to write; the first, its header, has the names and types of the others.
        version: Version of this program.

    Raises:
        CheckpointError: A source file is missing.
    """
    heads = {name: _sha256(parts[0]) for name, parts in files.items()}
    engines = [importlib.metadata.version(name) for name in ("llama-cpp-python", "numpy")]
    facts = [version, engines, file_states(sources), heads]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sha256(part: Part) -> str:
    return hashlib.sha256(b"".join(step() for step in part.steps())).hexdigest()


def _cut(directory: Path, kept: list[Record]) -> None:
    """Remove the bytes that the journal does not record."""
    sizes: dict[str, int] = {}
    for record in kept:
        sizes[record.file] = record.start + record.size_bytes
    _empty(directory, sizes.keys() | {JOURNAL})
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


def _append(lines: IO[bytes], data: bytes) -> None:
    while data:
        data = data[lines.write(data) or 0 :]
    os.fsync(lines.fileno())


def _silent(_done: int, _total: int) -> None:
    return None
