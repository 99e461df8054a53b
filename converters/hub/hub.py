"""The hub: the one file of this program that uses a network, and only `pull` imports it.

`describe` asks what a repository holds at a revision, `download` brings one file. Who the hub is (HF_ENDPOINT) and who
the user is (HF_TOKEN) is huggingface-hub's own business. Of its parts only those are used that are the same from 0.34
to 2.x: `hf_hub_download` of the newer ones begins again after every interruption, and Xet has its own servers.
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

# huggingface-hub reads these when it is imported: nothing is reported about this machine, nothing goes past HF_ENDPOINT
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

# for a process that had imported it before us
constants.HF_HUB_DISABLE_TELEMETRY = True
# its failures reach the user as our exceptions, not as log lines
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
# only whole chunks are written: with the library's 10 MB a line that drops every few megabytes would never advance
constants.DOWNLOAD_CHUNK_SIZE = 1 << 20

ATTEMPTS = 5  # in a row that bring no byte; within each, huggingface-hub tries up to six times
_TIMEOUT_S = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# the base of every failure of the HTTP client, which is another one in each major version of huggingface-hub; http_get
# calls itself after every interruption, so a very bad line ends in RecursionError
_INTERRUPTED: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, RecursionError)
# what parsing something else than the hub's JSON ends in: a network's login page, say, which answers 200 to everything
_NO_ANSWER: tuple[type[Exception], ...] = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub states it.

    Attributes:
        name: relative to the repository, with slashes.
        algorithm: `sha256` of the content for large files (LFS), `git` for git's blob hash of small ones.
        digest: hexadecimal.
    """

    name: str
    size_bytes: int
    algorithm: Literal["sha256", "git"]
    digest: str


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit; `licence` is what the hub says, or empty."""

    repository: str
    commit: str
    licence: str
    files: dict[str, RemoteFile]


def describe(repository: str, revision: str) -> Snapshot:
    """Ask the hub what a repository holds.

    Args:
        repository: `ORG/REPO`.
        revision: a branch, a tag or a commit.

    Raises:
        NetworkError: the hub cannot be reached or does not answer as one.
        UsageError: there is no such repository or revision, or this user may not read it.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except HFValidationError as error:
        raise UsageError(f"Expected a repository, but the hub takes {repository!r} for none; correct it.") from error
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
    """Bring one file, or what is missing of it; its content is for the caller to check.

    Args:
        snapshot: where the file is.
        file: which.
        part: where its bytes go; those already there are not fetched again. They stay when the download fails.
        progress: called with the number of bytes that are there.

    Raises:
        NetworkError: the connection failed `ATTEMPTS` times in a row without a new byte, or too many bytes came.
        UsageError: the hub refuses this file, or `part` cannot be written.
        HardwareError: the disk is full.
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
            # a compressed answer could not be continued
            error = _append(url, sink, {**headers, "Accept-Encoding": "identity"})
            if (end := sink.tell()) == file.size_bytes:
                return
        _raise_refusal(error, snapshot.repository, snapshot.commit)
        without_news = 0 if end > start else without_news + 1
        if without_news == ATTEMPTS:
            raise _gave_up(error, file, end) from error
        time.sleep(2**without_news)


def _append(url: str, sink: PartFile, headers: dict[str, str]) -> Exception:
    """Append what the hub sends, and return why it ended."""
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
                f"Expected {self._file.size_bytes} bytes of {self._file.name}, but the hub sends more; nothing was "
                f"installed: delete {self.path}, then run the command again."
            )
        rest = memoryview(data)
        with disk_errors(self.path):
            while rest:
                rest = rest[super().write(rest) :]
        self._progress(self.tell())
        return len(data)


def _raise_refusal(error: BaseException, repository: str, revision: str) -> None:
    """Raise what no retry can mend."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    refusal: BimedixEdgeError | None = None
    if isinstance(error, GatedRepoError):
        refusal = UsageError(
            f"Expected access to {repository}, but its authors ask for consent first; give it on "
            f"{constants.ENDPOINT}/{repository} and set HF_TOKEN to a token of that account."
        )
    elif isinstance(error, RevisionNotFoundError):
        refusal = UsageError(
            f"Expected a branch, a tag or a commit of {repository}, but it has no {revision!r}; name another after '@'."
        )
    elif status in (401, 403):
        refusal = UsageError(
            f"Expected access to {repository}, but the hub refuses it ({status}): it does not exist, or it is private; "
            "check the name, or set HF_TOKEN to a token that may read it."
        )
    elif status == 404:
        refusal = UsageError(
            f"Expected a repository {repository} on {constants.ENDPOINT}, but there is none (404); check the name."
        )
    elif 400 <= status < 500 and status not in (408, 429):
        refusal = NetworkError(
            f"Expected {constants.ENDPOINT} to answer for {repository}, but it says {status}; try again later."
        )
    if refusal is not None:
        raise refusal from error


def _unreachable(error: BaseException, repository: str) -> NetworkError:
    reason = "HF_HUB_OFFLINE forbids it" if isinstance(error, OfflineModeIsEnabled) else _first_line(error)
    name = repository.partition("/")[2].lower()
    return NetworkError(
        f"Expected to reach {constants.ENDPOINT} for {repository}, but that failed ({reason}); connect this machine "
        f"and run the command again, or bring the files by USB: on another machine download config.json, "
        f"tokenizer.json, tokenizer_config.json, model.safetensors.index.json and every .safetensors file of "
        f"{repository}, put them into one directory {name} on this machine, and run `bimedix-edge convert {name}`."
    )


def _gave_up(error: BaseException, file: RemoteFile, n_bytes: int) -> NetworkError:
    return NetworkError(
        f"Expected {file.size_bytes} bytes of {file.name} from {constants.ENDPOINT}, but the connection failed "
        f"{ATTEMPTS} times in a row ({_first_line(error)}); {n_bytes} bytes are kept and nothing was installed: run "
        "the command again to continue."
    )


def _not_a_hub(what: str) -> NetworkError:
    return NetworkError(
        f"Expected {constants.ENDPOINT} to answer as a hub, but {what}; check HF_ENDPOINT, and whether this network "
        "asks for a login first."
    )


def _remote_file(sibling: Any) -> RemoteFile | None:
    """Return a listed file; None if the hub states no hash, since such a file could not be checked."""
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
