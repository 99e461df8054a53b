"""`bimedix-edge serve` as an operator runs it: options it refuses, TLS and files of keys, how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from server_process import COMMAND, PATIENCE_S, Server

KEY = "ward-7-0123456789abcdef"


def refused(*arguments: str) -> tuple[int, str]:
    """Run a server that does not start, and return its exit code and its error, which is one line."""
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("bimedix-edge: ")]
    assert line.endswith(".")
    return result.returncode, line


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a new certificate for `ward.example`, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ward.example"]
    names = ["-addext", "subjectAltName=DNS:ward.example,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# ward 7\n{KEY}\n\nward-8-0123456789abcdef\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--tls-cert, --tls-key and --api-key-file"),
        (["--host", "192.0.2.1", "--api-key-file", "keys"], "--tls-cert, --tls-key and --api-key-file"),
        (["--host", "ward.example"], "not an IPv4 or IPv6 address"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "No such file"),
        (["--tls-cert", "keys", "--tls-key", "keys"], "PEM files"),
        (["--allow-host", "http://ward.example"], "without scheme and port"),
        (["--api-key-file", "nowhere"], "No such file"),
        (["--api-key-file", "open"], "chmod 600"),
        (["--api-key-file", "short"], "20 or more characters"),
        (["--api-key-file", "empty"], "has no key"),
        (["--parallel", "0"], "parallel cannot be 0"),
        (["--queue", "-1"], "queue cannot be -1"),
        (["--port", "0", "-m", "nonsense"], "No installed model is named"),
    ],
)
def test_unsafe_and_impossible_options_are_refused_before_the_model_is_loaded(
    bundles: dict[str, Path],
    keys: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(keys.parent)
    for name, text, mode in (("open", KEY, 0o644), ("short", "x" * 19, 0o600), ("empty", "# none\n", 0o600)):
        Path(name).write_text(text)
        Path(name).chmod(mode)
    code, line = refused("-m", str(bundles["F16"]), *arguments)
    assert code == 2
    assert message in line


def test_a_port_that_is_taken_is_code_2(bundles: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused("-m", str(bundles["F16"]), "--port", str(port))
    assert code == 2
    assert f"127.0.0.1:{port}" in line
    assert "Choose another --port" in line


def test_a_damaged_bundle_is_code_4_and_names_the_file(bundles: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundles["F16"], copy)
    data = bytearray((copy / "vision.onnx").read_bytes())
    data[20] ^= 255
    (copy / "vision.onnx").write_bytes(data)
    code, line = refused("-m", str(copy), "--port", "0")
    assert code == 4
    assert "vision.onnx has other content" in line


def test_tls_keys_of_a_file_and_a_name_of_its_own(
    start_server: Callable[..., Server], certificate: tuple[Path, Path], keys: Path
) -> None:
    cert, key = certificate
    server = start_server(
        "--host", "0.0.0.0", "--tls-cert", str(cert), "--tls-key", str(key), "--api-key-file", str(keys),
        "--allow-host", "ward.example",
    )  # fmt: skip
    assert server.url == f"https://ward.example:{server.port}"
    # the operator made the keys, so the server prints no key
    assert (server.key, server.link) == ("", "")
    assert KEY not in "\n".join(server.lines)
    context = ssl.create_default_context(cafile=str(cert))

    def status(host: str, given: str) -> int:
        connection = HTTPSConnection("127.0.0.1", server.port, context=context, timeout=PATIENCE_S)
        headers = {"Host": f"{host}:{server.port}", "Authorization": f"Bearer {given}"}
        connection.request("GET", "/v1/models", headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert connection.sock is None or connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        connection.close()
        return answer.status

    assert status("ward.example", KEY) == 200
    assert status("ward.example", "ward-8-0123456789abcdef") == 200
    assert status("ward.example", KEY[:-1]) == 401
    assert status("evil.example", KEY) == 403
    # plain HTTP on that port gets no answer
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: ward.example\r\n\r\n")
        assert b"200" not in plain.recv(100)


def _stream(server: Server, n_tokens: int) -> socket.socket:
    question = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": n_tokens,
        "temperature": 2,
        "stream": True,
    }
    body = json.dumps({**question, "seed": 1}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def _rest(connection: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionError:
        pass
    return data


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_an_answer_end(start_server: Callable[..., Server], number: signal.Signals) -> None:
    server = start_server()
    with _stream(server, 100) as connection:
        server.process.send_signal(number)
        assert b"data: [DONE]" in _rest(connection)
    assert server.process.wait(PATIENCE_S) == 0
    assert not [line for line in server.lines if "Traceback" in line]


def test_the_second_signal_ends_at_once(start_server: Callable[..., Server]) -> None:
    server = start_server("--ctx-size", "8192")
    with _stream(server, 8000) as connection:
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) in (0, 130)
        if b"data: [DONE]" not in _rest(connection):
            assert server.process.returncode == 130
    assert not [line for line in server.lines if "Traceback" in line]


def test_a_server_that_is_idle_ends_with_code_0_and_leaves_no_process(start_server: Callable[..., Server]) -> None:
    server = start_server()
    (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    assert server.stop() == 0
    assert not Path(f"/proc/{child}").exists()
