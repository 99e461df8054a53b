"""Image embeddings on the disk, for users who want that: off by default, since they are patients' data.

    images/                       mode 0700
        secret                    32 random bytes, made with the first entry; mode 0600
        <64 digits>.embeds        one image: magic, HMAC of the rest, shape, float32; mode 0600

A name is an HMAC of the image's key under the secret, so without the secret nobody can tell from the names whether a
picture is in the cache. The HMAC inside covers the name, too: an entry that is damaged, cut short or moved under the
name of another image is dropped before anything in it is used. An entry's time of modification is that of its last use,
and the least recently used entries make room for new ones. Several processes may use one directory: entries appear and
disappear whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.errors import BimedixEdgeError, UsageError
from bimedix_edge.staging import disk_errors, write_file

__all__ = ["CacheUsage", "ImageCache", "cache_usage", "clear_cache"]

_SECRET = "secret"  # noqa: S105  the name of the file
_SECRET_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{64}\.embeds")
_PART = re.compile(r"\..*\.part")
_MAGIC = b"bimedix-edge image 1\n"
_SHAPE = struct.Struct("<II")
_TAG_BYTES = 32
_HEAD_BYTES = len(_MAGIC) + _TAG_BYTES + _SHAPE.size
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class CacheUsage:
    """The contents of a cache.

    Attributes:
        n_images: Number of images.
        size_bytes: Size of all files.
    """

    n_images: int
    size_bytes: int


class ImageCache:
    """Embeddings by the key of their image, in a private directory of bounded size.

    A fault of the disk costs an encoding, not the answer: `notify` reports it, and the image counts as not cached.

    Args:
        directory: Directory of the cache, created with its parents if it does not exist.
        max_bytes: Most bytes of all entries together.
        notify: Called with a sentence when an entry was damaged, or could not be read or written.

    Raises:
        UsageError: The directory cannot be created, or does not belong to this user.
    """

    def __init__(self, directory: Path, max_bytes: int, notify: Callable[[str], None] | None = None) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._notify = notify or (lambda _: None)
        with disk_errors(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_private(directory)

    def get(self, key: str, shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """Return the embeddings under `key`, or None.

        Args:
            key: See `vision.encoder.embedding_key`.
            shape: n_tokens and n_embd of the encoder.

        Returns:
            float32 of that shape.
        """
        try:
            secret = self._secret()
            path = self._path(secret, key)
            data = _read(path, _HEAD_BYTES + 4 * shape[0] * shape[1])
            if data is None:
                return None
            if (embeds := _checked(data, secret, path.name, shape)) is None:
                path.unlink(missing_ok=True)
                self._notify(
                    f"The entry {path} of the image cache is damaged; it was removed, and the image is encoded again."
                )
                return None
            with contextlib.suppress(FileNotFoundError):  # another process has just made room
                os.utime(path)
            return embeds
        except OSError as error:
            self._notify(f"The image cache in {self.directory} cannot be read: {_reason(error)}. Check the disk.")
            return None

    def put(self, key: str, embeds: NDArray[np.float32]) -> None:
        """Keep `embeds`, float32 (n_tokens, n_embd), and drop the least recently used entries that no longer fit."""
        values = np.ascontiguousarray(embeds, "<f4")
        size = _HEAD_BYTES + values.nbytes
        if size > self.max_bytes:
            self._notify(
                f"An image of {size} bytes does not fit into the image cache of {self.max_bytes}; set image_cache to "
                "more."
            )
            return
        try:
            secret = self._secret()
            path = self._path(secret, key)
            rest = _SHAPE.pack(*values.shape) + values.tobytes()
            self._make_room(size)
            write_file(path, _MAGIC + _tag(secret, path.name, rest) + rest)
            self._make_room(0)  # other processes write, too
        except (OSError, BimedixEdgeError) as error:
            reason = _reason(error.__cause__ if isinstance(error.__cause__, OSError) else error)
            self._notify(f"The image cache in {self.directory} cannot be written: {reason}. The image was not kept.")

    def _make_room(self, n_bytes: int) -> None:
        entries = sorted(_entries(self.directory), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(status.st_size for _, status in entries)
        for path, status in entries:
            if total + n_bytes <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size

    def _secret(self) -> bytes:
        """Return the secret, made now if there is none; `clear_cache` removes it, so it is read each time."""
        path = self.directory / _SECRET
        for _ in range(2):
            try:
                found = _read(path, _SECRET_BYTES)
            except IsADirectoryError as error:
                raise UsageError(f"{path} is a directory and not a file. Remove it.") from error
            if found is not None and len(found) == _SECRET_BYTES:
                return found
            if found is not None:
                path.unlink(missing_ok=True)
                self._notify(f"{path} is damaged: it has not {_SECRET_BYTES} bytes. The image cache starts empty.")
            self._make_secret(path)
        raise OSError(f"{path} cannot be kept")

    def _make_secret(self, path: Path) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.directory, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: its secret counts
                os.link(temporary, path)
        finally:
            os.unlink(temporary)

    def _path(self, secret: bytes, key: str) -> Path:
        return self.directory / f"{hmac.new(secret, b'name|' + key.encode(), hashlib.sha256).hexdigest()}.embeds"


def cache_usage(directory: Path) -> CacheUsage:
    """Return the contents of a cache; one that does not exist is empty.

    Raises:
        UsageError: The directory cannot be read.
    """
    with disk_errors(directory):
        sizes = [status.st_size for _, status in _entries(directory)]
        return CacheUsage(len(sizes), sum(sizes) + sum(status.st_size for _, status in _files(directory, _PART)))


def clear_cache(directory: Path) -> CacheUsage:
    """Remove all entries, leftovers of killed processes, and the secret, without which the old names mean nothing.

    Returns:
        What the cache contained.

    Raises:
        UsageError: A file cannot be removed.
    """
    found = cache_usage(directory)
    with disk_errors(directory):
        for path, _ in (*_entries(directory), *_files(directory, _PART)):
            path.unlink(missing_ok=True)
        (directory / _SECRET).unlink(missing_ok=True)
    return found


def _make_private(directory: Path) -> None:
    status = directory.lstat()
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if not stat.S_ISDIR(status.st_mode) or foreign:
        raise UsageError(
            f"{directory} is not a directory of your own: it is {'another user’s' if foreign else 'a link'}. "
            "The image cache needs one; set cache_dir to another place."
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        directory.chmod(0o700)


def _files(directory: Path, name: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
    if not directory.is_dir():
        return []
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if name.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return found


def _entries(directory: Path) -> list[tuple[Path, os.stat_result]]:
    return _files(directory, _NAME)


def _read(path: Path, n_bytes: int) -> bytes | None:
    """Return a file's content, at most one byte more than expected, or None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(n_bytes + 1)


def _tag(secret: bytes, name: str, rest: bytes | memoryview) -> bytes:
    digest = hmac.new(secret, b"content|" + name.encode() + b"|", hashlib.sha256)
    digest.update(rest)
    return digest.digest()


def _checked(data: bytes, secret: bytes, name: str, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return the embeddings of an entry, or None unless its bytes are those that were written under this name."""
    if len(data) != _HEAD_BYTES + 4 * shape[0] * shape[1] or not data.startswith(_MAGIC):
        return None
    start = len(_MAGIC) + _TAG_BYTES
    rest = memoryview(data)[start:]
    if not hmac.compare_digest(data[len(_MAGIC) : start], _tag(secret, name, rest)):
        return None
    if _SHAPE.unpack_from(rest) != shape:
        return None
    values: NDArray[np.float32] = np.frombuffer(rest, "<f4", offset=_SHAPE.size).reshape(shape).astype(np.float32)
    return values


def _reason(error: BaseException) -> str:
    return f"the system says '{getattr(error, 'strerror', None) or error}'"
