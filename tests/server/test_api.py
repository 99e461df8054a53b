"""The API as its clients see it: OpenAI's own client, unchanged, and every way to ask for what there is not."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI


def data_url(path: Path, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(image: str, text: str) -> list[dict[str, object]]:
    """Return one message about one image."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def client(server) -> Iterator[OpenAI]:  # type: ignore[no-untyped-def]
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def test_a_question_about_an_image_and_a_follow_up(client: OpenAI, samples: Path) -> None:
    messages = about(data_url(samples / "nodule_right_upper.png"), "Is there a nodule?")
    first = client.chat.completions.create(model="demo:f16", messages=messages, temperature=0)  # type: ignore[call-overload]
    assert first.choices[0].message.content == "Yes."
    assert first.choices[0].finish_reason == "stop"
    assert "not for clinical use" in first.notice
