"""The API as its clients see it: OpenAI's own client, unchanged, and every way to ask for what there is not."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from server_process import Server

from bimedix_edge.server.api_errors import ApiError
from bimedix_edge.server.limits import RateLimit

NODULE = "Is there a nodule?"
MODEL = "demo:f16"
CHAT = "/v1/chat/completions"


def data_url(path: Path, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(image: str, text: str, **hint: object) -> list[Any]:
    """Return one message about one image."""
    picture = {"type": "image_url", "image_url": {"url": image}, **({"bimedix": hint} if hint else {})}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def nodule(samples: Path) -> str:
    return data_url(samples / "nodule_right_upper.png")


def test_a_question_about_an_image_and_a_follow_up(client: OpenAI, nodule: str) -> None:
    messages = about(nodule, NODULE)
    first = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert first.choices[0].message.content == "Yes."
    assert first.choices[0].finish_reason == "stop"
    assert "not for clinical use" in first.notice  # type: ignore[attr-defined]
    assert first.usage is not None
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    made = first.choices[0].bimedix  # type: ignore[attr-defined]
    assert made["stop_reason"] == "end"
    assert (made["images"][0]["width_px"], len(made["images"][0]["sha256"])) == (200, 64)
    # the message object goes back as it came, with all that a client's class adds to it
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "Where do you see the nodule?"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert second.choices[0].message.content == "In the upper zone of the right lung."
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens  # type: ignore[operator]


def test_a_stream_says_the_same_as_a_whole_answer(client: OpenAI, nodule: str) -> None:
    messages = [*about(nodule, "أين توجد العقيدة؟")]
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, n=2)
    texts, notices, reasons = ["", ""], [], []
    usage = None
    with client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, n=2, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            notices += [chunk.notice] if "notice" in chunk.model_extra else []  # type: ignore[attr-defined,operator]
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] == "في المنطقة العلوية من الرئة اليمنى."
    assert reasons == ["stop", "stop"]
    assert len(notices) == 3
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_progress_is_told_to_who_asks_for_it(client: OpenAI, samples: Path) -> None:
    messages = about(data_url(samples / "normal.png"), "Is the heart enlarged?")
    options: Any = {"include_usage": True, "bimedix_progress": True}
    events = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, stream=True, stream_options=options
    ):
        if (told := (chunk.model_extra or {}).get("bimedix")) is not None:
            assert chunk.choices == []
            events.append(told)
    assert [event["done"] for event in events if event["event"] == "encode"] == [False, True]
    last = events[-1]
    assert last["event"] == "prefill"
    assert last["n_done"] == last["n_total"] > 0


def test_a_seed_makes_an_answer_repeatable(client: OpenAI) -> None:
    def answer(seed: int | None) -> str:
        made = client.completions.create(model=MODEL, prompt="Hello", temperature=1, max_tokens=16, seed=seed)
        return made.choices[0].text

    answer(5)  # sums of what is read and of what is found in the cache differ in their last bits
    first = answer(5)
    assert answer(5) == first
    assert len({answer(seed) for seed in (5, 7, 9, 11)}) > 1
    assert len({answer(None) for _ in range(4)}) > 1
    # several answers to one request have seeds of their own
    several = client.completions.create(model=MODEL, prompt="Hello", temperature=2, max_tokens=16, n=4, seed=5)
    assert len({choice.text for choice in several.choices}) > 1


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_ends_an_answer_with_length(client: OpenAI, name: str) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], temperature=2, **{name: 3}
    )
    assert made.usage is not None
    assert made.usage.completion_tokens <= 3
    assert made.choices[0].finish_reason in ("length", "stop")


def test_plain_completions(client: OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt=["Is there", "هل"], max_tokens=4, temperature=0)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.usage is not None
    assert made.usage.completion_tokens <= 8
    text = ""
    for chunk in client.completions.create(model=MODEL, prompt="Is there", max_tokens=4, temperature=0, stream=True):
        text += chunk.choices[0].text if chunk.choices else ""
    assert text == made.choices[0].text


def test_models_tokens_health_metrics_and_facts(client: OpenAI, server: Server) -> None:
    (listed,) = client.models.list().data
    assert listed.id == client.models.retrieve(MODEL).id == MODEL
    tokens = server.request("POST", "/tokenize", {"content": "قلب heart <|eot_id|>"}).json
    assert server.request("POST", "/detokenize", tokens).json == {"content": "قلب heart <|eot_id|>"}
    assert server.request("GET", "/health", key=False).json == {"status": "ok"}
    metrics = server.request("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in metrics.body.decode().splitlines() if not line.startswith("#"))
    assert float(values["llamacpp:prompt_tokens_total"]) > 0
    assert values['bimedix:model_state{state="ready"}'] == "1"
    facts = server.request("GET", "/api/facts").json
    assert facts["name"] == MODEL
    assert "not for clinical use" in facts["notice"]
    assert facts["limits"]["n_ctx"] == 1024


def test_what_the_model_sees_of_a_dicom_file_and_an_answer_about_it(server: Server, client: OpenAI) -> None:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str)
    image = data_url(Path(path), "application/dicom")
    default = server.request("POST", "/api/look", {"image": image}).json
    lung = server.request("POST", "/api/look", {"image": image, "window": "lung"}).json
    assert default["png"].startswith("data:image/png;base64,")
    assert default["png"] != lung["png"]
    assert default["sha256"] == lung["sha256"]
    assert lung["tags"]["modality"] == "CT"
    assert "lung" in lung["presets"]
    assert any("lung" in note for note in lung["notes"])
    made = client.chat.completions.create(
        model=MODEL, messages=about(image, NODULE, window="lung", frame=1), temperature=0, max_tokens=4
    )
    assert made.choices[0].bimedix["images"][0]["sha256"] == lung["sha256"]  # type: ignore[attr-defined]


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
def test_a_request_that_asks_for_what_there_is_not(
    server: Server, body: Any, code: str, param: str | None, *, stream: bool
) -> None:
    if stream and isinstance(body, dict):
        body = {**body, "stream": True}
        if "stream_options" in body:
            pytest.skip("that is right then")
    answer = server.request("POST", CHAT, body)
    assert answer.status == 400, answer.body
    assert answer.error["code"] == code
    assert answer.error["message"].startswith("Expected ")
    if param is not None:
        assert answer.error["param"] == param


def test_too_long_says_by_how_much(server: Server) -> None:
    error = server.ask("word " * 3000).error
    assert error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 1024
    assert f"{error['n_prompt_tokens'] - 1023} too many" in error["message"]


def test_too_many_images_say_how_many_there_may_be(server: Server, nodule: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": nodule}} for _ in range(17)]
    answer = server.request("POST", CHAT, _said(("user", [*parts, {"type": "text", "text": "x"}])))
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert "there are 17" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", CHAT, _bad(model="gpt-5"), {}, 404, "model_not_found"),
        ("GET", "/v1/models/gpt-5", None, {}, 404, "model_not_found"),
        ("GET", "/v1/nothing", None, {}, 404, "not_found"),
        ("GET", "/v1/models/", None, {}, 404, "model_not_found"),
        ("GET", CHAT, None, {}, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", None, {}, 405, "method_not_allowed"),
        ("POST", CHAT, _bad(), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", CHAT, _bad(), {"Content-Type": "application/json; charset=latin1"}, 415, "unsupported_media_type"),
        ("POST", CHAT, _bad(), {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ("POST", "/detokenize", {"tokens": [10**6]}, {}, 400, "invalid_value"),
        ("POST", "/detokenize", {"tokens": [-1]}, {}, 400, "invalid_value"),
        ("POST", "/tokenize", {"content": "x", "add_special": True}, {}, 400, "unknown_field"),
        ("POST", "/api/look", {"image": "data:image/png;base64,AAAA"}, {}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"prompt": ""}, {}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"prompt": "x", "echo": True}, {}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"prompt": [1, 2]}, {}, 400, "invalid_value"),
    ],
)
def test_every_refusal_has_its_status_and_code(
    server: Server, method: str, path: str, body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    answer = server.request(method, path, body, headers=headers)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_a_request_that_is_too_large_is_refused_before_and_while_it_comes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    whole = server.request("POST", CHAT, b" " * ((64 << 20) + 1))
    assert (whole.status, whole.error["code"]) == (413, "request_too_large")
    # nothing of it is kept
    assert server.ask().status == 200


def test_who_asks_too_often_is_told_when_to_ask_again_and_others_are_not() -> None:
    rate = RateLimit(per_s=0.5, burst=5)
    for _ in range(5):
        rate.take("one")
    with pytest.raises(ApiError) as refused:
        rate.take("one")
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.headers == {"Retry-After": "2"}
    rate.take("another")


def _endless(server: Server) -> socket.socket:
    """Ask for a long answer as a stream, and return the connection once it has begun."""
    body = json.dumps(_bad(max_tokens=900, temperature=2, min_p=0.01, stream=True, seed=1)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def _gauge(server: Server, name: str) -> float:
    text = server.request("GET", "/metrics").body.decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def _until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_a_client_that_goes_frees_its_place_and_a_full_queue_says_how_many_wait(
    start_server: Callable[..., Server],
) -> None:
    server = start_server("--parallel", "1", "--queue", "1", "--ctx-size", "4096", "--max-tokens", "4000")
    body = _bad(max_tokens=4000, temperature=2, stream=True, seed=3)
    held = _endless(server)
    waiting = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.key}\r\n"
    waiting.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    assert _until(
        lambda: _gauge(server, "llamacpp:requests_deferred") == 1 or _gauge(server, "llamacpp:requests_processing") == 0
    )
    full = server.ask()
    if full.status != 200:  # unless the long answer happened to end by itself
        assert (full.status, full.error["code"], full.error["place"]) == (429, "queue_full", 1)
        assert int(full.headers["retry-after"]) >= 1
    waiting.close()
    held.close()
    assert _until(lambda: _gauge(server, "llamacpp:requests_processing") == 0)
    assert _gauge(server, "llamacpp:requests_deferred") == 0
    assert server.ask().status == 200


def test_a_model_that_dies_is_told_and_comes_back(start_server: Callable[..., Server]) -> None:
    server = start_server()
    (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    with _endless(server) as connection:
        os.kill(int(child), signal.SIGKILL)
        text = b""
        while b"0\r\n\r\n" not in text and (data := connection.recv(65536)):
            text += data
    assert b'"code":"lost"' in text or b'"finish_reason":"length"' in text or b'"finish_reason":"stop"' in text
    assert _until(lambda: server.request("GET", "/health", key=False).status == 200, 60)
    assert server.ask().status == 200
    assert _gauge(server, "bimedix:model_restarts_total") == 1


def test_openai_errors_have_the_classes_of_their_client(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": ""}])
    assert bad.value.code == "invalid_prompt"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "x"}])
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
