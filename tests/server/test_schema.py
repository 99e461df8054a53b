"""`response_format` is enforced, or refused before the model gets the request."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator
from openai import OpenAI
from pydantic import BaseModel, Field
from server_process import Server

from bimedix_edge.schema.reports import load_schema


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.mark.parametrize("name", ["report", "summary", "vqa"])
def test_a_schema_holds_the_answer(server: Server, name: str) -> None:
    schema = load_schema(name)
    reply = server.ask("ماذا ترى؟", response_format=as_format(schema), temperature=1, seed=2, max_tokens=900)
    assert reply.status == 200, reply.body
    (choice,) = reply.json["choices"]
    assert choice["finish_reason"] == "stop"
    Draft202012Validator(schema).validate(json.loads(choice["message"]["content"]))


class Finding(BaseModel):
    text: Annotated[str, Field(max_length=20)]
    side: Literal["left", "right"] | None


def test_the_official_client_parses_an_answer_into_a_model(server: Server) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        reply = client.chat.completions.parse(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "What do you see?"}],
            response_format=Finding,
            temperature=1,
            seed=1,
        )
    assert isinstance(reply.choices[0].message.parsed, Finding)


def test_without_a_schema_the_answer_is_some_object(server: Server) -> None:
    for seed in range(3):
        reply = server.ask(response_format={"type": "json_object"}, temperature=1.5, seed=seed, max_tokens=300)
        (choice,) = reply.json["choices"]
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_an_answer_that_is_cut_says_so(server: Server) -> None:
    reply = server.ask(response_format=as_format(load_schema("report")), max_tokens=5)
    assert reply.json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"a": {"not": {}}}}, "#/properties/a/not"),
        ({"minimum": 2, "maximum": 1, "type": "integer"}, "minimum"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(server: Server, schema: dict[str, Any], named: str) -> None:
    reply = server.ask(response_format=as_format(schema))
    assert reply.status == 400
    assert reply.error["code"] == "unsupported_schema"
    assert reply.error["param"].startswith("response_format")
    assert named in reply.error["message"]
