"""Writes files and directories whole or not at all: beside the target, then fsync, then rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bimedix_edge.errors import HardwareError, UsageError

__all__ = [
    "InUseError",
    "check_replaceable",
    "disk_errors",
    "exclusive",
    "forget_cached",
    "fsync_directory",
    "left_bytes",
    "remove_directory",
    "staged_directory",
    "write_file",
]


class InUseError(UsageError):
    """Another process is writing the same target."""


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn an operating-system failure while writing `target` into one of ours.

    Raises:
        HardwareError: The disk is full, or a quota or a file-size limit is reached.
        UsageError: The target cannot be written (missing, read-only, not permitted).
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HardwareError(
                f"There is no room to write {target} ({reason}), so nothing was installed. "
                "Free some space or choose another place, then run the command again."
            ) from error
        raise UsageError(f"{target} cannot be written ({reason}). Choose another place.") from error


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable; does nothing on Windows, which cannot open a directory."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(target: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` to `target` so that a crash leaves the old file or the new one, never a part.

    Args:
        target: Path of the file; its directory must exist.
        data: Whole content of the file.
        mode: Permission bits of the file; private by default, since answers are patient data.

    Raises:
        HardwareError, UsageError: See `disk_errors`.
    """
    with disk_errors(target):
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        fsync_directory(target.parent)


@contextlib.contextmanager
def staged_directory(target: Path, *, replace: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `target`; when the block ends without an error, it becomes `target`.

    The part directory has a fixed hidden name and a lock, so killed processes leave at most one behind. The next run
    removes it, or resumes from it.

    Args:
        target: Directory to make; its parent is created.
        replace: Whether to replace an existing `target`; otherwise it is an error.
        resume: Whether the block resumes from the files in the part directory, and keeps them after a failure.

    Yields:
        The part directory, on the same file system as `target`.

    Raises:
        UsageError: `target` exists and `replace` is false, another process is writing it, or it is not writable.
        HardwareError: The disk is full.
    """
    target = Path(os.path.abspath(target))
    part = _part(target)
    old = target.with_name(f".{target.name}.old")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target):
            _recover(target, part, old, resume=resume)
            check_replaceable(target, replace=replace)
            part.mkdir(exist_ok=resume)
            try:
                yield part
                _publish(part, target, old)
            except BaseException:
                if resume:
                    with contextlib.suppress(OSError):  # it is not empty if the block left files to resume from
                        part.rmdir()
                else:
                    shutil.rmtree(part, ignore_errors=True)
                raise


def check_replaceable(target: Path, *, replace: bool) -> None:
    """Refuse a target now on which the rename would fail after hours of work.

    Args:
        target, replace: See `staged_directory`.

    Raises:
        UsageError: `target` exists and `replace` is false, or it is not a directory that can be replaced.
    """
    if (target.exists() and not replace) or target.is_symlink():
        raise UsageError(f"{target} exists already. Remove it or choose another name.")
    if target.exists() and (not target.is_dir() or os.path.ismount(target)):
        kind = "a mounted file system" if target.is_dir() else "a file"
        raise UsageError(f"{target} is {kind} and cannot be replaced. Choose a name inside a directory.")


def left_bytes(target: Path) -> int:
    """Return the size in bytes of the part directory that a killed process left."""
    return sum(path.stat().st_size for path in _part(Path(os.path.abspath(target))).rglob("*") if path.is_file())


def forget_cached(path: Path) -> None:
    """Drop a file from the system's page cache, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove_directory(target: Path) -> None:
    """Remove a directory so that it is there whole or not at all: rename it to a hidden name, then delete that.

    Args:
        target: An existing directory. Leftovers of a killed removal under the hidden name are removed too.

    Raises:
        UsageError: Another process is writing `target`, or the system denies the removal.
    """
    target = Path(os.path.abspath(target))
    with disk_errors(target), exclusive(target):
        removed = _removed(target)
        if removed.exists():
            shutil.rmtree(removed)
        os.rename(target, removed)
        fsync_directory(target.parent)
        shutil.rmtree(removed)


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Keep other processes from writing `target` while the block runs; its parent must exist.

    Raises:
        InUseError: Another process is writing it; the message has its number.
    """
    with _lock(target.with_name(f".{target.name}.lock"), target):
        yield


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _removed(target: Path) -> Path:
    return target.with_name(f".{target.name}.removed")


def _recover(target: Path, part: Path, old: Path, *, resume: bool) -> None:
    """Clean up after a killed process: a part directory, an unfinished removal or an unfinished replacement."""
    for left in (_removed(target),) if resume else (part, _removed(target)):
        if left.exists():
            shutil.rmtree(left)
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)


def _publish(part: Path, target: Path, old: Path) -> None:
    for directory, _, names in os.walk(part):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(directory))
    if target.exists():
        os.rename(target, old)
    os.rename(part, target)
    fsync_directory(target.parent)
    if old.exists():
        shutil.rmtree(old)


@contextlib.contextmanager
def _lock(path: Path, target: Path) -> Iterator[None]:
    """Hold a lock on `path`; the operating system releases it when the process dies."""
    while True:
        file = open(path, "a+")  # noqa: SIM115  closed below, after the block
        try:
            _lock_file(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise InUseError(
                f"{target} is in use: process {holder} is writing it. Wait until it has finished."
            ) from error
        # the previous holder may have removed the file between our open and our lock
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    try:
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        if sys.platform == "win32":
            file.close()
            path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
            file.close()


def _lock_file(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
