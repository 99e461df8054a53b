"""Files and directories that appear whole or not at all: write beside the target, fsync, rename."""

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
        HardwareError: the disk is full, a quota or a file-size limit is reached.
        UsageError: the place cannot be written (missing, read-only, not permitted).
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise HardwareError(
                f"Expected room to write {target}, but the system says '{reason}'; nothing was installed: "
                "free some space or choose another place, then run the command again."
            ) from error
        raise UsageError(
            f"Expected to be able to write {target}, but the system says '{reason}'; choose another place."
        ) from error


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable; a no-op on Windows, which cannot open a directory."""
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
        target: the final path; its directory must exist.
        data: the whole content.
        mode: permission bits of the new file; private by default, since answers are patients' data.

    Raises:
        HardwareError, UsageError: see `disk_errors`.
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
    """Yield an empty directory beside `target`; when the block ends well it becomes `target`.

    The part directory has a fixed hidden name and is guarded by a lock, so at most one is left behind by a killed
    process, and the next run removes it, or finds it as it was left if it can go on with it.

    Args:
        target: the directory to appear; its parent is created.
        replace: whether an existing `target` is replaced; otherwise it is an error.
        resume: whether the block takes charge of what the part directory holds, before and after a failure.

    Yields:
        The part directory, on the same file system as `target`.

    Raises:
        UsageError: `target` exists and `replace` is false, another process is writing it, or the place is not writable.
        HardwareError: the disk is full.
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
                    with contextlib.suppress(OSError):  # the block left something to go on with
                        part.rmdir()
                else:
                    shutil.rmtree(part, ignore_errors=True)
                raise


def check_replaceable(target: Path, *, replace: bool) -> None:
    """Refuse now what a rename would refuse after hours of work.

    Args:
        target, replace: see `staged_directory`.

    Raises:
        UsageError: `target` exists and `replace` is false, or it is no directory that could be replaced.
    """
    if (target.exists() and not replace) or target.is_symlink():
        raise UsageError(f"Expected a new place, but {target} exists; remove it or choose another name.")
    if target.exists() and (not target.is_dir() or os.path.ismount(target)):
        kind = "a mounted file system" if target.is_dir() else "a file"
        raise UsageError(f"Expected a directory to replace, but {target} is {kind}; choose a name inside a directory.")


def left_bytes(target: Path) -> int:
    """Return the size of the part directory that a killed process left, which the next one takes over or removes."""
    return sum(path.stat().st_size for path in _part(Path(os.path.abspath(target))).rglob("*") if path.is_file())


def forget_cached(path: Path) -> None:
    """Let the system forget what it has cached of a file that is on the disk, so that it is next read from there."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove_directory(target: Path) -> None:
    """Remove a directory so that it is there whole or not at all: rename it to a hidden name, then delete that.

    Args:
        target: an existing directory. What a killed removal left under the hidden name is removed too.

    Raises:
        UsageError: another process is writing `target`, or it may not be removed.
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
        InUseError: another process is writing it; the message says which.
    """
    with _lock(target.with_name(f".{target.name}.lock"), target):
        yield


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _removed(target: Path) -> Path:
    return target.with_name(f".{target.name}.removed")


def _recover(target: Path, part: Path, old: Path, *, resume: bool) -> None:
    """Undo what a killed process left: a part directory, a removal or a replacement that was not finished."""
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
    """Hold `path` locked for this process; the operating system lets go of it when the process dies."""
    while True:
        file = open(path, "a+")  # noqa: SIM115  closed below, after the lock's work is done
        try:
            _lock_file(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise InUseError(
                f"Expected to write {target} alone, but process {holder} is writing it; wait until it has finished."
            ) from error
        # the holder before us may have removed the file between our open and our lock
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
