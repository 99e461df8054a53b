"""Requests that are not valid, or come when the queue is full or the model is gone: each has its status and code."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import PATIENCE_S, Server, about, data_url

from bimedix_edge.server.api.errors import ApiError
from bimedix_edge.server.front.limits import RateLimit

CHAT = "/v1/chat/completions"


def _bad(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **more}


def _said(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b'{"messages":' + b"[" * 200_000, "invalid_value", "messages[0]"),
        (b'{"metadata":' + b'{"a":' * 200_000, "invalid_json", None),
        ([], "invalid_value", None),
        ({}, "invalid_value", "messages"),
        (_bad(temperature=2.5), "invalid_value", "temperature"),
        (_bad(temperature="0"), "invalid_value", "temperature"),
        (_bad(top_p=-1), "invalid_value", "top_p"),
        (_bad(n=0), "invalid_value", "n"),
        (_bad(n=9), "invalid_value", "n"),
        (_bad(seed=-1), "invalid_value", "seed"),
        (_bad(max_tokens=0), "invalid_value", "max_tokens"),
        (_bad(max_completion_tokens=3), "invalid_value", "max_completion_tokens"),
        (_bad(stop=["a"] * 5), "invalid_value", "stop"),
        (_bad(stop=""), "invalid_value", "stop"),
        (_bad(logprobs=False, top_logprobs=2), "invalid_value", "top_logprobs"),
        (_bad(top_logprobs=21, logprobs=True), "invalid_value", "top_logprobs"),
        (_bad(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (_bad(frequency_penalty=0.5), "invalid_value", "frequency_penalty"),
        (_bad(presence_penalty=-0.5), "invalid_value", "presence_penalty"),
        (_bad(logit_bias={"5": 1}), "invalid_value", "logit_bias"),
        (_bad(tools=[{"type": "function"}]), "invalid_value", "tools"),
        (_bad(temprature=0), "unknown_field", "temprature"),
        (_bad(bimedix_chat=""), "invalid_value", "bimedix_chat"),
        (_said(("user", "a"), ("user", "b")), "invalid_value", "messages"),
        (_said(("user", "a"), ("assistant", "b")), "invalid_value", "messages"),
        (_said(("assistant", "a")), "invalid_value", "messages"),
        (_said(("system", "a")), "invalid_value", "messages"),
        (_said(("user", "a"), ("system", "b")), "invalid_value", "messages[1].role"),
        (_said(("tool", "a")), "invalid_value", "messages[0].role"),
        (_said(("user", "")), "invalid_prompt", "messages"),
        (_said(("user", [])), "invalid_value", "messages[0].content"),
        (_said(("user", [{"type": "input_audio"}])), "invalid_value", "messages[0].content[0].type"),
        (_said(("assistant", [{"type": "image_url", "image_url": {"url": "data:,"}}])), "invalid_value", None),
        ({"messages": about("data:image/png;base64,AAAA", "x")}, "invalid_image", "messages"),
        ({"messages": about("data:image/png;base64,A", "x")}, "invalid_value", "messages[0].content[0].image_url.url"),
        ({"messages": about("data:image/png;base64,AA==AA==", "x")}, "invalid_value", None),
        ({"messages": about("data:image/png;base64," + "AAAA" * 100, "x", window="nonsense")}, "invalid_image", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_not_valid_is_refused(
    server: Server, body: Any, code: str, param: str | None, *, stream: bool
) -> None:
    if stream and isinstance(body, dict):
        body = {**body, "stream": True}
        if "stream_options" in body:
            pytest.skip("with a stream, this request is valid")
    answer = server.request("POST", CHAT, body)
    assert answer.status == 400, answer.body
    assert answer.error["code"] == code
    message = answer.error["message"]
    # sentences that begin with a word, or with a name or a value in quotes; a client has no command line
    assert message[0].isupper() or message[0] in "`'"
    assert "--" not in message
    if param is not None:
        assert answer.error["param"] == param


def test_too_long_says_by_how_much(server: Server) -> None:
    error = server.ask("word " * 3000).error
    assert error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 1024
    assert f" {error['n_prompt_tokens'] - 1023} " in error["message"]


def test_too_many_images_say_how_many_there_may_be(server: Server, samples: Path) -> None:
    image = data_url(samples / "normal.png")
    parts = [{"type": "image_url", "image_url": {"url": image}} for _ in range(17)]
    answer = server.request("POST", CHAT, _said(("user", [*parts, {"type": "text", "text": "x"}])))
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert "has 17 images, more than" in answer.error["message"]


@pytest.mark.parametrize(
    ("asked", "headers", "status", "code"),
    [
        (("POST", CHAT, _bad(model="gpt-5")), {}, 404, "model_not_found"),
        (("GET", "/v1/models/gpt-5", None), {}, 404, "model_not_found"),
        (("GET", "/v1/nothing", None), {}, 404, "not_found"),
        (("GET", "/v1/models/", None), {}, 404, "model_not_found"),
        (("GET", CHAT, None), {}, 405, "method_not_allowed"),
        (("DELETE", "/v1/models", None), {}, 405, "method_not_allowed"),
        (("POST", CHAT, _bad()), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (("POST", CHAT, _bad()), {"Content-Type": "application/json; charset=latin1"}, 415, "unsupported_media_type"),
        (("POST", CHAT, _bad()), {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        (("POST", "/detokenize", {"tokens": [10**6]}), {}, 400, "invalid_value"),
        (("POST", "/detokenize", {"tokens": [-1]}), {}, 400, "invalid_value"),
        (("POST", "/tokenize", {"content": "x", "add_special": True}), {}, 400, "unknown_field"),
        (("POST", "/api/look", {"image": "data:image/png;base64,AAAA"}), {}, 400, "invalid_value"),
        (("POST", "/v1/completions", {"prompt": ""}), {}, 400, "invalid_value"),
        (("POST", "/v1/completions", {"prompt": "x", "echo": True}), {}, 400, "invalid_value"),
        (("POST", "/v1/completions", {"prompt": [1, 2]}), {}, 400, "invalid_value"),
    ],
)
def test_every_refusal_has_its_status_and_code(
    server: Server, asked: tuple[str, str, Any], headers: dict[str, str], status: int, code: str
) -> None:
    answer = server.request(*asked, headers=headers)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_a_request_that_is_too_large_is_refused_before_and_while_it_comes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    whole = server.request("POST", CHAT, b" " * ((64 << 20) + 1))
    assert (whole.status, whole.error["code"]) == (413, "request_too_large")
    # the server keeps nothing of it
    assert server.ask().status == 200


def test_a_client_that_asks_too_often_learns_when_to_ask_again_and_others_go_on() -> None:
    rate = RateLimit(per_s=0.5, burst=5)
    for _ in range(5):
        rate.take("one")
    with pytest.raises(ApiError) as refused:
        rate.take("one")
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.headers == {"Retry-After": "2"}
    rate.take("another")


def _endless(server: Server) -> socket.socket:
    """Ask for a long answer as a stream, and return the connection once the stream has begun."""
    body = json.dumps(_bad(max_tokens=900, temperature=2, min_p=0.01, stream=True, seed=1)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def _gauge(server: Server, name: str) -> float:
    text = server.request("GET", "/metrics").body.decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def _until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def test_a_client_that_leaves_frees_its_slot_and_a_full_queue_says_how_many_wait(
    start_server: Callable[..., Server],
) -> None:
    server = start_server("--parallel", "1", "--queue", "1", "--ctx-size", "4096", "--max-tokens", "4000")
    body = _bad(max_tokens=4000, temperature=2, stream=True, seed=3)
    held = _endless(server)
    waiting = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
    waiting.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    assert _until(
        lambda: _gauge(server, "llamacpp:requests_deferred") == 1 or _gauge(server, "llamacpp:requests_processing") == 0
    )
    full = server.ask()
    if full.status != 200:  # unless the long answer has ended by itself
        assert (full.status, full.error["code"], full.error["place"]) == (429, "queue_full", 1)
        assert int(full.headers["retry-after"]) >= 1
    waiting.close()
    held.close()
    assert _until(lambda: _gauge(server, "llamacpp:requests_processing") == 0)
    assert _gauge(server, "llamacpp:requests_deferred") == 0
    assert server.ask().status == 200


def test_a_model_that_dies_is_an_error_and_comes_back(start_server: Callable[..., Server]) -> None:
    server = start_server()
    (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    with _endless(server) as connection:
        os.kill(int(child), signal.SIGKILL)
        text = b""
        while b"0\r\n\r\n" not in text and (data := connection.recv(65536)):
            text += data
    assert b'"code":"lost"' in text or b'"finish_reason":"length"' in text or b'"finish_reason":"stop"' in text
    assert server.ask().status == 200  # before the server notices the death, or after
    assert _gauge(server, "bimedix:model_restarts_total") == 1
    assert _until(lambda: server.request("GET", "/health", key=False).status == 200, 60)
