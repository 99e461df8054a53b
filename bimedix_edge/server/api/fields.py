"""The fields of requests: types that check a request, and from which its JSON Schema is made.

A field that is not here is refused, as OpenAI does: what it asks for would silently not happen. A field of OpenAI's
that this model has no use for is here with the only value that changes nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from bimedix_edge.server.api.errors import ApiError, invalid

__all__ = [
    "MAX_CHOICES",
    "Empty",
    "Message",
    "Metadata",
    "ResponseFormat",
    "SamplingFields",
    "Stop",
    "StreamOptions",
    "Zero",
    "check",
    "decode",
]

MAX_CHOICES = 8
_MAX_STOP_CHARS = 256

Zero = Annotated[float, Meta(ge=0, le=0)] | None
Empty = Annotated[list[Any], Meta(max_length=0)] | None
Metadata = Annotated[dict[str, Any], Meta(max_length=16)] | None
StopString = Annotated[str, Meta(min_length=1, max_length=_MAX_STOP_CHARS)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=4)] | None
NonEmpty = Annotated[str, Meta(min_length=1)]
Request = TypeVar("Request")


class ImageHint(Struct, frozen=True, forbid_unknown_fields=True):
    """What of a DICOM file is shown; an extension of ours."""

    window: Annotated[str, Meta(max_length=64)] | None = None
    frame: Annotated[int, Meta(ge=1, le=1 << 20)] | Literal["middle"] | None = None


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """An image as a `data:` URL. Every image is seen at the model's own resolution, whatever `detail` says."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextContent(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text within a message."""

    text: str


class ImageContent(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    """An image within a message."""

    image_url: ImageUrl
    bimedix: ImageHint | None = None


class System(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="system"):
    """What the model is told before the conversation, in place of its own sentence."""

    content: str | Annotated[list[TextContent], Meta(min_length=1)]
    name: None = None


class Developer(System, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="developer"):
    """OpenAI's newer name of `system`."""


class User(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="user"):
    """A question, with images or without."""

    content: str | Annotated[list[TextContent | ImageContent], Meta(min_length=1)]
    name: None = None


class Assistant(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="assistant"):
    """An answer given before. What a client's message object has beside its text is empty."""

    content: str | Annotated[list[TextContent], Meta(min_length=1)]
    name: None = None
    refusal: None = None
    annotations: Empty = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty = None


Message = System | Developer | User | Assistant


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream has beside text; `bimedix_progress` is an extension of ours."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    bimedix_progress: bool | None = None


class TextFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text, as the model writes it."""


class ObjectFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Some JSON object; enforced, not only asked for."""


class JsonSchema(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON Schema; always enforced, so `strict` changes nothing."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any] | UnsetType = UNSET
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON that this schema allows."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat


class SamplingFields(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an answer is written, for both kinds of completions. What is missing is the server's setting."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # extensions that llama.cpp's server and others have
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    # whom the answer is for is not used
    user: Annotated[str, Meta(max_length=512)] | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=0)] | None = None


def decode(data: bytes, kind: type[Request]) -> Request:
    """Return a request's body as a value of this type.

    Raises:
        ApiError: 400, it is not JSON, or not what the type says; names the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, "invalid_json", f"Expected JSON in UTF-8, but it is not ({error}); correct it.") from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "Expected JSON of some depth, but it is nested too deep.") from None


def _refusal(said: str) -> ApiError:
    """Return msgspec's words, such as "Expected `int`, got `str` - at `$.n`", as an error of ours."""
    problem, _, place = said.partition(" - at ")
    param = place.strip("`").removeprefix("$").removeprefix(".")
    where = f" in `{param}`" if param else ""
    if named := re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", problem):
        field = f"{param}.{named[2]}" if param else named[2]
        if named[1] == "missing required":
            return invalid(f"Expected the field {named[2]!r}{where}, but it is missing; add it.", field)
        return invalid(
            f"Expected only fields that have an effect here, but there is {named[2][:60]!r}{where}; leave it out.",
            field,
            code="unknown_field",
        )
    if problem.startswith("Invalid "):
        value = problem.removeprefix("Invalid ").removeprefix("enum ").removeprefix("value ")
        return invalid(
            f"Expected one of the values that /openapi.json lists{where}, but it is {value[:60]}; correct it.", param
        )
    expected, _, given = problem.partition(", got ")
    return invalid(f"{expected}{where}, but it is {given or 'not so'}; correct it.", param or None)


def check(holds: bool, message: str, param: str) -> None:
    """Refuse a request in which fields contradict each other.

    Raises:
        ApiError: 400, unless it holds.
    """
    if not holds:
        raise invalid(message, param)
