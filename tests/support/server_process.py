"""A server as an operator starts it: its process, its output, and requests to it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main", "serve"]
PATIENCE_S = 300.0


@dataclass
class Answer:
    """What HTTP answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Return the error object; it has OpenAI's shape, and its message is made of sentences."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert error["message"].endswith(".")
        return error


@dataclass
class Server:
    """A running server.

    Attributes:
        process: The server's process, whose child owns the model.
        url: Its URL, without a path.
        key: The key that it made; empty where keys are in a file.
        link: Link to the page, with the one-time token; empty where keys are in a file.
        lines: Lines of its output, errors included.
    """

    process: subprocess.Popen[str]
    url: str = ""
    key: str = ""
    link: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def host(self) -> str:
        """Return the right Host header."""
        return self.url.partition("//")[2]

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, key: bool = True
    ) -> Answer:
        """Send one request over a connection of its own, with the body as JSON unless it is bytes."""
        sent = {"Authorization": f"Bearer {self.key}"} if key else {}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def ask(self, question: str = "Is there a nodule?", **more: Any) -> Answer:
        """Ask a question without a picture, decoded greedily."""
        return self.request(
            "POST",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 8, **more},
        )

    def n_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self) -> int:
        """Stop the server as a service manager does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def serving(model: Path, *arguments: str, prefix: tuple[str, ...] = (), ready: bool = True) -> Iterator[Server]:
    """Run a server while the block runs.

    Args:
        model: Directory of a bundle.
        arguments: More arguments of the command line.
        prefix: Command that runs the server, such as a tracer.
        ready: Whether to wait until the model is loaded.
    """
    command = [*prefix, *COMMAND, "-m", str(model), "--port", "0", "--ctx-size", "1024", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        server = Server(process)
        seen = threading.Event()
        thread = threading.Thread(target=_listen, args=(server, seen, "Ready: " if ready else "Page, "), daemon=True)
        thread.start()
        try:
            assert seen.wait(PATIENCE_S), server.lines
            assert process.poll() is None, server.lines
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            thread.join(PATIENCE_S)


def _listen(server: Server, seen: threading.Event, awaited: str) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.lines.append(line.rstrip("\n"))
        for name, pattern in (("url", r"Listening at (\S+)"), ("key", r"Key.*: (\S+)"), ("link", r"Page.*: (\S+)")):
            if match := re.match(pattern, line):
                setattr(server, name, match[1])
        if line.startswith(awaited):
            seen.set()
    seen.set()  # it has ended


def data_url(path: Path, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(image: str, text: str, **hint: object) -> list[Any]:
    """Return one message about one image."""
    picture = {"type": "image_url", "image_url": {"url": image}, **({"bimedix": hint} if hint else {})}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
