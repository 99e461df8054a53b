"""Requests that get no answer: other Hosts, other sites' pages in a real browser, wrong keys, images by address."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_process import Server

from bimedix_edge.server.front.access import Keys, OneTimeToken, new_key

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PORT = "{port}"
HOSTILE_HOSTS = [
    "evil.example", "evil.example:{port}", "127.0.0.1", "localhost", "127.0.0.1:1", "localhost:80",
    "127.0.0.1:{port}0", "127.0.0.1.evil.example:{port}", "localhost.evil.example:{port}", "localhost.:{port}",
    "127.0.0.1.:{port}", "127.1:{port}", "2130706433:{port}", "0x7f000001:{port}", "0177.0.0.1:{port}",
    "127.0.0.2:{port}", "0.0.0.0:{port}", "0:{port}", "[::]:{port}", "[::ffff:127.0.0.1]:{port}",
    "[0:0:0:0:0:0:0:1]:{port}", "::1:{port}", "[::1%25lo]:{port}", "user@127.0.0.1:{port}",
    "127.0.0.1:{port}@evil.example", "127.0.0.1:{port}/evil.example", "http://127.0.0.1:{port}",
    "127.0.0.1:{port}#", "127.0.0.1:{port}?", "127.0.0.1:{port},evil.example", "127.0.0.1:{port} evil.example",
    "127.0.0.1:+{port}", "127.0.0.1:0{port}", "127.0.0.1:{port}:", "127.0.0.1::{port}", ":{port}",
    "localhost\u2024:{port}", "l\xf6calhost:{port}", "ip6-localhost:{port}", "*",
]  # fmt: skip
NOT_ADDRESSES = [
    "http://127.0.0.1:{trap}/a.png", "http://127.0.0.1:{trap}/redirect", "https://127.0.0.1:{trap}/a.png",
    "HTTP://127.0.0.1:{trap}/a.png", "http://localhost:{trap}/a.png", "http://[::1]:{trap}/a.png",
    "http://0.0.0.0:{trap}/a.png", "http://2130706433:{trap}/a.png", "http://127.1:{trap}/a.png",
    "http://user:pass@127.0.0.1:{trap}/a.png", "http://169.254.169.254/latest/meta-data/",
    "http://evil.example/a.png", "https://evil.example/a.png",
    "http://127.0.0.1:{trap}/a.png#data:image/png;base64,AAAA", "//127.0.0.1:{trap}/a.png", "/v1/models",
    "a.png", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd",
    "file://localhost/etc/passwd", "file:/etc/passwd", "\\\\127.0.0.1\\share\\a.png",
    "ftp://127.0.0.1:{trap}/a.png", "gopher://127.0.0.1:{trap}/_x", "dict://127.0.0.1:{trap}/x",
    "ldap://127.0.0.1:{trap}/x", "s3://bucket/a.png", "jar:http://127.0.0.1:{trap}/a.jar!/a.png",
    "blob:http://127.0.0.1:{trap}/a", "javascript:alert(1)", "view-source:x", "data:text/html;base64,PGI+",
    "data:image/svg+xml,<svg/>", "data:image/png,raw", "data:;base64,AAAA",
    "data:image/png;base64,http://127.0.0.1:{trap}/a.png", " http://127.0.0.1:{trap}/a.png", "",
]  # fmt: skip


def raw(server: Server, text: str) -> tuple[int, str]:
    """Send raw bytes, and return the status and the whole response."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(text.encode("utf-8", "surrogateescape"))
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", data)
    return (int(match[1]) if match else 0), data.decode("utf-8", "replace")


def with_host(server: Server, *lines: str) -> tuple[int, str]:
    head = [f"GET {lines[0]} HTTP/1.1", *lines[1:], f"Authorization: Bearer {server.key}", "Connection: close", "", ""]
    return raw(server, "\r\n".join(head))


def test_there_are_forty_of_each() -> None:
    assert len(set(HOSTILE_HOSTS)) == len(set(NOT_ADDRESSES)) == 40


@pytest.mark.parametrize("host", HOSTILE_HOSTS)
def test_another_host_gets_no_answer(server: Server, host: str) -> None:
    for path in ("/v1/models", "/health", "/"):
        status, text = with_host(server, path, f"Host: {host.replace(PORT, str(server.port))}")
        assert status in (400, 403), text
        assert "demo" not in text
        assert '"code":"host_not_allowed"' in text or '"code":"invalid_http"' in text


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
def test_our_own_names_are_answered(server: Server, name: str) -> None:
    status, text = with_host(server, "/v1/models", f"Host: {name}:{server.port}")
    assert status == 200
    assert "demo:f16" in text


def test_no_host_two_hosts_and_a_whole_address_get_no_answer(server: Server) -> None:
    own = f"Host: {server.host}"
    assert with_host(server, "/v1/models", "X: y")[0] == 400
    assert with_host(server, "/v1/models", own, "Host: evil.example")[0] == 400
    assert with_host(server, f"http://{server.host}/v1/models", own)[0] in (400, 403)
    assert raw(server, f"GET /health HTTP/2.0\r\nHost: {server.host}\r\nConnection: close\r\n\r\n")[0] == 505
    assert raw(server, f"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer {server.key}\r\n\r\n")[0] == 403


@pytest.mark.parametrize(
    "lines",
    [
        ["Origin: http://evil.example"],
        ["Origin: null"],
        ["Origin: "],
        ["Origin: http://localhost:{port}"],  # a name of ours, but not the one in this request's Host
        ["Origin: https://127.0.0.1:{port}"],
        ["Origin: http://127.0.0.1"],
        ["Origin: http://127.0.0.1:{port}", "Origin: http://evil.example"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: unheard-of"],
        ["Origin: http://127.0.0.1:{port}", "Sec-Fetch-Site: cross-site"],
    ],
)
def test_a_browsers_request_for_another_site_gets_no_answer(server: Server, lines: list[str]) -> None:
    sent = [line.replace(PORT, str(server.port)) for line in lines]
    status, text = with_host(server, "/health", f"Host: 127.0.0.1:{server.port}", *sent)
    assert status == 403
    assert '"code":"origin_not_allowed"' in text


def test_our_own_page_is_answered_and_no_other_origin_is_ever_allowed(server: Server) -> None:
    answer = server.request("GET", "/v1/models", headers={"Origin": server.url, "Sec-Fetch-Site": "same-origin"})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer x", "Basic {key}", "{key}", "Bearer {key}x", "bearer \u00e9"]
)
@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/openapi.json", "/api/facts", "/no/such", "/healthz", "//"]
)
def test_without_the_key_no_route_answers(server: Server, given: str | None, path: str) -> None:
    headers = {} if given is None else {"Authorization": given.replace("{key}", server.key).encode().decode("latin-1")}
    answer = server.request("GET", path, headers=headers, key=False)
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"demo" not in answer.body


def test_the_pages_token_works_once(start_server: Callable[..., Server]) -> None:
    server = start_server(ready=False)
    token = server.link.partition("#t=")[2]
    wrong = server.request("POST", "/api/session", {"token": token + "x"}, key=False)
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_token")
    assert server.request("POST", "/api/session", {"token": token}, key=False).json == {"key": server.key}
    again = server.request("POST", "/api/session", {"token": token}, key=False)
    assert (again.status, again.error["code"]) == (401, "invalid_token")


def test_tenants_have_names_of_their_own_that_cannot_be_guessed() -> None:
    first, second = new_key(), new_key()
    assert len(first) > 40
    keys = Keys([first, second])
    names = {keys.tenant(first), keys.tenant(second)}
    assert len(names) == 2
    assert keys.tenant(first) == keys.tenant(first)
    assert keys.tenant(first[:-1]) is keys.tenant("") is None
    assert first not in str(names)
    # after another start, the same key has another name
    assert Keys([first]).tenant(first) not in names
    token = OneTimeToken(first)
    assert [token.take("x"), token.take(token.token), token.take(token.token)] == [None, first, None]


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


class _Trap(_Quiet):
    """Counts connections: the server must never fetch a picture."""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/redirect" else 200)
        self.send_header("Location", "/a.png")
        self.end_headers()


class _Counting(ThreadingHTTPServer):
    daemon_threads = True
    n_connections = 0

    def verify_request(self, request: object, client_address: object) -> bool:
        self.n_connections += 1
        return True


@pytest.fixture
def trap() -> Iterator[_Counting]:
    with _Counting(("127.0.0.1", 0), _Trap) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener
        listener.shutdown()
        thread.join()


def strace(log: Path) -> tuple[str, ...]:
    """Return the command that traces another, or skip the test."""
    tracer = shutil.which("strace") if sys.platform == "linux" else None
    if tracer is None:
        pytest.skip("strace is not installed")
    # -D: the tracer is the grandchild, so that signals reach the server
    command = (tracer, "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=socket,connect,sendto,sendmsg", "-o", str(log))
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the system allows no tracing")
    return command


def test_an_address_in_place_of_an_image_opens_no_socket(
    start_server: Callable[..., Server], trap: _Counting, tmp_path: Path
) -> None:
    log = tmp_path / "trace"
    server = start_server(prefix=strace(log))
    before = len(log.read_text().splitlines())
    for given in NOT_ADDRESSES:
        url = given.replace("{trap}", str(trap.server_port))
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], "max_tokens": 2}
        for answer in (
            server.request("POST", "/v1/chat/completions", body),
            server.request("POST", "/api/look", {"image": url}),
        ):
            assert answer.status == 400, url
            assert answer.error["code"] in ("url_not_allowed", "unsupported_image", "invalid_value"), url
            assert "root:" not in answer.body.decode()
    server.stop()
    new = log.read_text().splitlines()[before:]
    assert [line for line in new if "AF_INET" in line or "connect(" in line or "AF_NETLINK" in line] == []
    assert trap.n_connections == 0


# what a page of another site can make a browser do; {to} is our server
VARIANTS = {
    "fetch": "fetch('{to}/health')",
    "fetch of the page": "fetch('{to}/')",
    "fetch with credentials": "fetch('{to}/health', {credentials: 'include'})",
    "fetch no-cors": "fetch('{to}/health', {mode: 'no-cors'})",
    "fetch no-cors post": "fetch('{to}/api/session', {method: 'POST', mode: 'no-cors', body: '{}'})",
    "fetch keepalive": "fetch('{to}/api/session', {method: 'POST', mode: 'no-cors', body: '{}', keepalive: true})",
    "fetch with a preflight": (
        "fetch('{to}/v1/chat/completions', {method: 'POST', body: '{}', headers: {'Content-Type': 'application/json'}})"
    ),
    "fetch with a key": "fetch('{to}/v1/models', {headers: {Authorization: 'Bearer {key}'}})",
    "fetch put": "fetch('{to}/health', {method: 'PUT', body: 'x'})",
    "fetch of a redirect": "fetch('/to?{to}/health')",
    "fetch no-cors of a redirect": "fetch('/to?{to}/health', {mode: 'no-cors'})",
    "xhr get": "const x = new XMLHttpRequest(); x.open('GET', '{to}/health'); x.send()",
    "xhr post": "const x = new XMLHttpRequest(); x.open('POST', '{to}/api/session'); x.send('{}')",
    "beacon": "navigator.sendBeacon('{to}/api/session', '{}')",
    "beacon of a form": "navigator.sendBeacon('{to}/api/session', new URLSearchParams({token: 'x'}))",
    "event source": "new EventSource('{to}/health')",
    "web socket": "new WebSocket('{to}/health'.replace('http', 'ws'))",
    "module": "import('{to}/static/main.js')",
    "image": "add('img', {src: '{to}/health'})",
    "script": "add('script', {src: '{to}/static/main.js'})",
    "style": "add('link', {rel: 'stylesheet', href: '{to}/static/base.css'})",
    "preload": "add('link', {rel: 'preload', as: 'image', href: '{to}/health'})",
    "frame": "add('iframe', {src: '{to}/'})",
    "object": "add('object', {data: '{to}/'})",
    "embed": "add('embed', {src: '{to}/'})",
    "video": "add('video', {src: '{to}/health', preload: 'auto'})",
    "background": "document.body.style.backgroundImage = 'url({to}/health)'",
    "font": "const f = new FontFace('x', 'url({to}/health)'); f.load().catch(() => 0)",
    "form post": "form('POST', 'text/plain')",
    "form get": "form('GET', 'application/x-www-form-urlencoded')",
    "form upload": "form('POST', 'multipart/form-data')",
    "navigation": "location.href = '{to}/'",
    "window": "open('{to}/')",
}
_TOOLS = """
function add(name, values) {
  const made = Object.assign(document.createElement(name), values);
  document.body.append(made);
  return made;
}
function form(method, enctype) {
  const made = add('form', {action: '{to}/api/session', method, enctype});
  made.append(Object.assign(document.createElement('input'), {name: '{"token":"', value: 'x"}'}));
  made.submit();
}
"""


class _Evil(_Quiet):
    """Another site: an empty page, and redirects."""

    def do_GET(self) -> None:
        path, _, to = self.path.partition("?")
        self.send_response(302 if path == "/to" else 200)
        self.send_header("Content-Type", "text/html")
        if path == "/to":
            self.send_header("Location", to)
        self.end_headers()
        if path != "/to":
            self.wfile.write(b"<!doctype html><title>Another site</title><body>")


def counted(server: Server) -> dict[tuple[str, str], int]:
    """Return how many requests had which route and status, except those for the metrics."""
    text = server.request("GET", "/metrics").body.decode()
    found = re.findall(r'^bimedix:http_requests_total\{route="(.*)",status="(\d+)"\} (\d+)$', text, re.MULTILINE)
    return {(route, status): int(count) for route, status, count in found if route != "/metrics"}


def refused(server: Server, before: dict[tuple[str, str], int], seconds: float) -> dict[tuple[str, str], int]:
    """Return what was counted since, as soon as there is something."""
    deadline = time.monotonic() + seconds
    while True:
        now = counted(server)
        new = {key: count - before.get(key, 0) for key, count in now.items() if count != before.get(key, 0)}
        if new or time.monotonic() > deadline:
            return new
        time.sleep(0.05)


# for browsers, this is the same site: only the port differs
SAME_SITE = ("fetch", "fetch no-cors post", "xhr post", "beacon", "web socket", "script", "frame", "form post")


@pytest.mark.parametrize(("site", "names"), [("evil.example", tuple(VARIANTS)), ("127.0.0.1", SAME_SITE)])
def test_a_page_of_another_site_gets_no_answer(
    start_server: Callable[..., Server], browser: Browser, site: str, names: tuple[str, ...]
) -> None:
    server = start_server()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Evil) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            context = browser.new_context()
            for name in names:
                before = counted(server)
                page = context.new_page()
                page.goto(f"http://{site}:{listener.server_port}/")
                code = (_TOOLS + "try { " + VARIANTS[name] + " } catch (error) {}").replace("{to}", server.url)
                page.evaluate("code => { (0, eval)(code) }", code.replace("{key}", server.key))
                new = refused(server, before, 10)
                assert new, f"{name} never came"
                # only refusals of the Origin, which come before any route
                assert {key for key in new if key != ("none", "403")} == set(), name
                page.close()
            context.close()
        finally:
            listener.shutdown()


def test_a_name_that_another_site_points_at_us_gets_no_answer(server: Server, browser: Browser) -> None:
    page = browser.new_page()
    response = page.goto(f"http://evil.example:{server.port}/")
    assert response is not None
    assert response.status == 403
    assert "host_not_allowed" in response.text()
    page.close()


def test_the_log_holds_nothing_of_a_request(start_server: Callable[..., Server]) -> None:
    server = start_server("--access-log")
    secret = "Zanzibarkrankheit"
    assert server.ask(f"Has she {secret}?").status == 200
    assert server.request("GET", f"/v1/models?{secret}={secret}").status == 200
    assert server.request("GET", f"/{secret}").status == 404
    assert server.ask(secret, stop=[secret, ""]).status == 400
    server.request("POST", "/v1/chat/completions", {secret: secret}, headers={"X-Patient": secret})
    server.stop()
    log = "\n".join(server.lines)
    assert "POST /v1/chat/completions 200" in log
    assert "GET /v1/models 200" in log
    assert secret not in log
    assert os.fspath(Path(__file__).parent) not in log
