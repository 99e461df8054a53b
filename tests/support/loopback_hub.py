"""A hub on 127.0.0.1 with faults: it serves one repository through the endpoints that huggingface-hub uses."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE_BYTES = 1 << 20  # from here on a file is in LFS
_BLOCK_BYTES = 1 << 16


@dataclass
class Faults:
    """Faults to produce; each occurrence decrements its counter."""

    drops: int = 0  # connections cut in the middle of a large file
    drops_after_bytes: int | None = None  # offset of the cut, by default the middle of the answer
    wrong_bytes: int = 0  # large files served with one byte changed
    errors: int = 0  # answers 503
    status: int = 0  # status of every answer, with `error_code`
    error_code: str = ""
    token: str = ""  # requests without it get 401
    ignores_range: bool = False
    redirects: bool = False  # large files come from another path, as from the hub's CDN
    api_text: str | None = None  # instead of the API's JSON
    seconds_per_block: float = 0.0


@dataclass
class Request:
    path: str
    first_byte: int
    served_bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class LoopbackHub(ThreadingHTTPServer):
    """Serves the files of a directory as the repository `org/repo`."""

    daemon_threads = True

    def __init__(
        self, source: Path, repository: str = "MBZUAI/BiMediX2-8B-Bi", licence: str = "cc-by-nc-sa-4.0"
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {
            path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()
        }
        self.repository = repository
        self.licence = "cc-by-nc-sa-4.0"
        self.faults = Faults()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.listing_edits: dict[str, Any] = {}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def served_bytes(self) -> int:
        return sum(request.served_bytes for request in self.requests)

    def fetched(self) -> list[str]:
        """Return the names of the files asked for, in order."""
        return [
            request.path.partition(f"/resolve/{COMMIT}/")[2] for request in self.requests if "/resolve/" in request.path
        ]

    def siblings(self) -> list[dict[str, Any]]:
        return [self._sibling(name, data) for name, data in sorted(self.files.items())]

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if len(data) >= _LARGE_BYTES:
            sha256 = hashlib.sha256(data).hexdigest()
            sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
            sibling["blobId"] = "f" * 40
        return {**sibling, **self.listing_edits.get(name, {})}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: killed clients are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: Any) -> None:
        return None

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        entry = Request(path, self._first_byte(), headers={key.lower(): value for key, value in self.headers.items()})
        self.server.requests.append(entry)
        faults = self.server.faults
        repository = self.server.repository
        if faults.status:
            self._send(faults.status, b"{}", {"X-Error-Code": faults.error_code} if faults.error_code else {})
        elif faults.token and self.headers.get("Authorization") != f"Bearer {faults.token}":
            self._send(401, b"{}", {})
        elif self._counts_down("errors"):
            self._send(503, b"", {})
        elif path in (f"/api/models/{repository}/revision/main", f"/api/models/{repository}/revision/{COMMIT}"):
            self._send(200, self._listing(), {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{repository}/revision/"):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith((f"/{repository}/resolve/{COMMIT}/", "/cdn/")):
            self._file(entry, path.partition("/resolve/")[2].partition("/")[2] or path.removeprefix("/cdn/"), body=body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _listing(self) -> bytes:
        if self.server.faults.api_text is not None:
            return self.server.faults.api_text.encode()
        info = {"id": self.server.repository, "sha": COMMIT, "siblings": self.server.siblings()}
        return json.dumps({**info, "cardData": {"license": self.server.licence}}).encode()

    def _file(self, entry: Request, name: str, *, body: bool) -> None:
        data = self.server.files.get(name)
        faults = self.server.faults
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        large = len(data) >= _LARGE_BYTES
        if large and faults.redirects and not entry.path.startswith("/cdn/"):
            self._send(302, b"", {"Location": f"{self.server.url}/cdn/{name}", "X-Repo-Commit": COMMIT})
            return
        start = 0 if faults.ignores_range else entry.first_byte
        if start >= len(data) > 0:
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if large and self._counts_down("wrong_bytes"):
            data = data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]
        end = len(data)
        if large and self._counts_down("drops"):
            end = start + (faults.drops_after_bytes or (len(data) - start) // 2)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self._body(entry, data[start:end], paced=large)
        if end < len(data):
            self.close_connection = True

    def _body(self, entry: Request, data: bytes, *, paced: bool) -> None:
        for offset in range(0, len(data), _BLOCK_BYTES):
            block = data[offset : offset + _BLOCK_BYTES]
            self.wfile.write(block)
            entry.served_bytes += len(block)
            if paced and self.server.faults.seconds_per_block:
                time.sleep(self.server.faults.seconds_per_block)

    def _first_byte(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def _counts_down(self, counter: str) -> bool:
        with self.server.lock:
            left: int = getattr(self.server.faults, counter)
            setattr(self.server.faults, counter, max(left - 1, 0))
        return left > 0

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
