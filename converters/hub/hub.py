"""The hub: the one file of this program that uses a network, and only `pull` imports it.

`describe` asks for the contents of a repository at a revision, `download` fetches one file. huggingface-hub finds the
hub (HF_ENDPOINT) and the user's token (HF_TOKEN). This module uses only those of its functions that are the same from
0.34 to 2.x: `hf_hub_download` of newer versions restarts after each interruption, and Xet has its own servers.
"""

from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bimedix_edge.errors import BimedixEdgeError, NetworkError, UsageError
from bimedix_edge.staging import disk_errors

# huggingface-hub reads these at import: it reports nothing about this machine and asks no server but HF_ENDPOINT
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_ENABLE_HF_TRANSFER"] = "0"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not in its __all__

__all__ = ["ATTEMPTS", "PartFile", "RemoteFile", "Snapshot", "describe", "download"]

# for a process that imported it earlier
constants.HF_HUB_DISABLE_TELEMETRY = True
# its failures reach the user as exceptions, not as log lines
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
# only whole chunks are written: with the library's 10 MB, a connection that drops sooner would never advance
constants.DOWNLOAD_CHUNK_SIZE = 1 << 20

ATTEMPTS = 5  # in a row without a new byte; in each, huggingface-hub tries up to six times
_TIMEOUT_S = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# the base of every failure of the HTTP client, which differs between major versions of huggingface-hub; http_get
# calls itself after every interruption, so a very bad connection ends in RecursionError
_INTERRUPTED: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, RecursionError)
# raised by parsing anything but the hub's JSON, such as a network's login page, which answers each request with 200
_NO_ANSWER: tuple[type[Exception], ...] = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class RemoteFile:
    """The hub's description of a file.

    Attributes:
        name: Path in the repository, with slashes.
        algorithm: `sha256` of the content for large files (LFS), `git` for git's blob hash of small ones.
        digest: Hash, hexadecimal.
    """

    name: str
    size_bytes: int
    algorithm: Literal["sha256", "git"]
    digest: str


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit; `licence` is the hub's name for it, or empty."""

    repository: str
    commit: str
    licence: str
    files: dict[str, RemoteFile]


def describe(repository: str, revision: str) -> Snapshot:
    """Ask the hub for the contents of a repository.

    Args:
        repository: `ORG/REPO`.
        revision: Branch, tag or commit.

    Raises:
        NetworkError: The hub cannot be reached, or its answer is not that of a hub.
        UsageError: The repository or revision does not exist, or this user may not read it.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is not the name of a repository. Correct it.") from error
    except _INTERRUPTED + _NO_ANSWER as error:
        _raise_refusal(error, repository, revision)
        if isinstance(error, _NO_ANSWER):
            raise _not_a_hub(f"its answer for {repository} does not parse") from error
        raise _unreachable(error, repository) from error
    if not _COMMIT.fullmatch(info.sha or ""):
        raise _not_a_hub("it names no commit")
    files = [file for sibling in info.siblings or [] if (file := _remote_file(sibling))]
    licence = getattr(info.card_data, "license", None)
    return Snapshot(repository, str(info.sha), licence if isinstance(licence, str) else "", {f.name: f for f in files})


def download(snapshot: Snapshot, file: RemoteFile, part: Path, progress: Callable[[int], None]) -> None:
    """Fetch one file, or the missing rest of it; the caller checks its content.

    Args:
        snapshot: The repository.
        file: The file.
        part: Path for its bytes. The bytes in it are not fetched again; they stay when the download fails.
        progress: Called with the number of bytes in it.

    Raises:
        NetworkError: The connection failed `ATTEMPTS` times in a row without a new byte, or the hub sent too much.
        UsageError: The hub refuses this file, or `part` cannot be written.
        HardwareError: The disk is full.
    """
    url = hf_hub_url(snapshot.repository, file.name, revision=snapshot.commit)
    headers = build_hf_headers(library_name="bimedix-edge", library_version=importlib.metadata.version("bimedix-edge"))
    without_news = 0
    while True:
        with disk_errors(part):
            sink = PartFile(part, file, progress)
        with sink:
            start = sink.tell()
            progress(start)
            if start == file.size_bytes:
                return
            # a compressed answer cannot be resumed
            error = _append(url, sink, {**headers, "Accept-Encoding": "identity"})
            if (end := sink.tell()) == file.size_bytes:
                return
        _raise_refusal(error, snapshot.repository, snapshot.commit)
        without_news = 0 if end > start else without_news + 1
        if without_news == ATTEMPTS:
            raise _gave_up(error, file, end) from error
        time.sleep(2**without_news)


def _append(url: str, sink: PartFile, headers: dict[str, str]) -> Exception:
    """Append the hub's answer, and return the reason for its end."""
    try:
        http_get(url, sink, resume_size=sink.tell(), headers=headers)
    except _INTERRUPTED as error:
        return error
    return EOFError("the answer is too short")


class PartFile(io.FileIO):
    """A growing file that takes no more than the stated size, and whose writes reach the operating system at once.

    Args:
        path: The file; what it contains stays.
        file: What the hub states about it.
        progress: Called with the size after each write.
    """

    def __init__(self, path: Path, file: RemoteFile, progress: Callable[[int], None]) -> None:
        super().__init__(path, "a")
        self.path = path
        self._file = file
        self._progress = progress

    def write(self, data: Any) -> int:
        """Append all of some bytes and return their number.

        Raises:
            NetworkError: The file would become larger than the hub states.
            HardwareError: The disk is full.
        """
        if self.tell() + len(data) > self._file.size_bytes:
            raise NetworkError(
                f"The hub sends more than the {self._file.size_bytes} bytes that it states for {self._file.name}. "
                f"Nothing was installed. Delete {self.path}, then run the command again."
            )
        rest = memoryview(data)
        with disk_errors(self.path):
            while rest:
                rest = rest[super().write(rest) :]
        self._progress(self.tell())
        return len(data)


def _raise_refusal(error: BaseException, repository: str, revision: str) -> None:
    """Raise an error that no retry can resolve, or return."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    refusal: BimedixEdgeError | None = None
    if isinstance(error, GatedRepoError):
        refusal = UsageError(
            f"The authors of {repository} ask for consent first. Give it on {constants.ENDPOINT}/{repository}, "
            "and set HF_TOKEN to a token of that account."
        )
    elif isinstance(error, RevisionNotFoundError):
        refusal = UsageError(f"{repository} has no {revision!r}. Name another branch, tag or commit after '@'.")
    elif status in (401, 403):
        refusal = UsageError(
            f"The hub refuses access to {repository} ({status}): it does not exist, or it is private. "
            "Check the name, or set HF_TOKEN to a token that may read it."
        )
    elif status == 404:
        refusal = UsageError(f"There is no repository {repository} on {constants.ENDPOINT} (404). Check the name.")
    elif 400 <= status < 500 and status not in (408, 429):
        refusal = NetworkError(f"{constants.ENDPOINT} answers {status} for {repository}. Try again later.")
    if refusal is not None:
        raise refusal from error


def _unreachable(error: BaseException, repository: str) -> NetworkError:
    reason = "HF_HUB_OFFLINE forbids it" if isinstance(error, OfflineModeIsEnabled) else _first_line(error)
    name = repository.partition("/")[2].lower()
    return NetworkError(
        f"{constants.ENDPOINT} cannot be reached for {repository} ({reason}). Connect this machine and run the command "
        f"again, or bring the files by USB: on another machine, download config.json, tokenizer.json, "
        f"tokenizer_config.json, model.safetensors.index.json and every .safetensors file of {repository}. "
        f"Put them into one directory {name} on this machine, and run `bimedix-edge convert {name}`."
    )


def _gave_up(error: BaseException, file: RemoteFile, n_bytes: int) -> NetworkError:
    return NetworkError(
        f"The download of {file.name} from {constants.ENDPOINT} failed {ATTEMPTS} times in a row "
        f"({_first_line(error)}). {n_bytes} of {file.size_bytes} bytes are kept and nothing was installed: run the "
        "command again to resume."
    )


def _not_a_hub(what: str) -> NetworkError:
    return NetworkError(
        f"{constants.ENDPOINT} does not answer as a hub: {what}. Check HF_ENDPOINT, and whether this network asks for "
        "a login first."
    )


def _remote_file(sibling: Any) -> RemoteFile | None:
    """Return a listed file; None if the hub states no hash, since the file could not be checked."""
    sha256 = getattr(sibling.lfs, "sha256", "") or ""
    if not isinstance(sibling.size, int) or sibling.size < 0:
        return None
    if _SHA256.fullmatch(sha256):
        return RemoteFile(sibling.rfilename, sibling.size, "sha256", sha256)
    if sibling.lfs is None and _COMMIT.fullmatch(sibling.blob_id or ""):
        return RemoteFile(sibling.rfilename, sibling.size, "git", sibling.blob_id)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0][:160]
