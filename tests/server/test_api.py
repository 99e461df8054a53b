"""The API as its clients see it: OpenAI's own client, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from server_process import Server, about, data_url

NODULE = "Is there a nodule?"
MODEL = "demo:f16"
CHAT = "/v1/chat/completions"


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
    # the message object goes back as it came, with the fields that the client's class adds
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


def test_a_stream_reports_progress_on_request(client: OpenAI, samples: Path) -> None:
    messages = about(data_url(samples / "normal.png"), "Is the heart enlarged?")
    options: Any = {"include_usage": True, "bimedix_progress": True}
    events = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, stream=True, stream_options=options
    ):
        if (progress := (chunk.model_extra or {}).get("bimedix")) is not None:
            assert chunk.choices == []
            events.append(progress)
    assert [event["done"] for event in events if event["event"] == "encode"] == [False, True]
    last = events[-1]
    assert last["event"] == "prefill"
    assert last["n_done"] == last["n_total"] > 0


def test_a_seed_makes_an_answer_repeatable(client: OpenAI) -> None:
    def answer(seed: int | None) -> str:
        made = client.completions.create(model=MODEL, prompt="Hello", temperature=1, max_tokens=16, seed=seed)
        return made.choices[0].text

    answer(5)  # sums over prefilled and over cached positions differ in their last bits
    first = answer(5)
    assert answer(5) == first
    assert len({answer(seed) for seed in (5, 7, 9, 11)}) > 1
    assert len({answer(None) for _ in range(4)}) > 1
    # each of several answers to one request has its own seed
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
    assert any("lung" in str(note) for note in lung["notes"])
    made = client.chat.completions.create(
        model=MODEL, messages=about(image, NODULE, window="lung", frame=1), temperature=0, max_tokens=4
    )
    assert made.choices[0].bimedix["images"][0]["sha256"] == lung["sha256"]  # type: ignore[attr-defined]


def test_stop_texts_end_an_answer_and_are_not_part_of_it(client: OpenAI, nodule: str) -> None:
    messages = about(nodule, "Where do you see the nodule?")
    for stop in (" zone", ["nothing", "upper zone"]):
        made = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stop=stop)
        assert made.choices[0].finish_reason == "stop"
        assert made.choices[0].message.content in ("In the upper", "In the ")
        text = ""
        for chunk in client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, stop=stop, stream=True
        ):
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        assert text == made.choices[0].message.content


def test_probabilities_are_those_of_the_tokens(client: OpenAI, nodule: str) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=about(nodule, NODULE), temperature=0, logprobs=True, top_logprobs=3
    )
    assert made.choices[0].logprobs is not None
    content = made.choices[0].logprobs.content
    assert content
    assert "".join(token.token for token in content).startswith("Yes.")
    for token in content:
        assert bytes(token.bytes or []).decode("utf-8", "replace") == token.token
        assert len(token.top_logprobs) == 3
        # greedy decoding takes the most likely token
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0


def test_plain_completions_have_probabilities_of_their_own_shape(client: OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt=["Is there", "هل"], max_tokens=4, temperature=0, logprobs=2)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.usage is not None
    assert made.usage.completion_tokens <= 8
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or []) == len(logprobs.text_offset or [])


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
