"""The fields of requests: types that check a request, and that its JSON Schema is made from.

Unknown fields are refused, as OpenAI does: otherwise what they ask for would silently not happen. A field of OpenAI's
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
    "ApiMessage",
    "Empty",
    "Metadata",
    "ResponseFormat",
    "SamplingFields",
    "StopTexts",
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
StopTexts = StopString | Annotated[list[StopString], Meta(max_length=4)] | None
NonEmpty = Annotated[str, Meta(min_length=1)]
Body = TypeVar("Body")


class ImageHint(Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of a DICOM file the model sees; an extension of ours."""

    window: Annotated[str, Meta(max_length=64)] | None = None
    frame: Annotated[int, Meta(ge=1, le=1 << 20)] | Literal["middle"] | None = None


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """An image as a `data:` URL. The model sees every image at its own resolution, whatever `detail` says."""

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
    """Instructions before the conversation, in place of the model's own sentence."""

    content: str | Annotated[list[TextContent], Meta(min_length=1)]
    name: None = None


class Developer(System, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="developer"):
    """OpenAI's newer name of `system`."""


class User(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="user"):
    """A question, with images or without."""

    content: str | Annotated[list[TextContent | ImageContent], Meta(min_length=1)]
    name: None = None


class Assistant(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="assistant"):
    """An earlier answer. The other fields of a client's message object must be empty."""

    content: str | Annotated[list[TextContent], Meta(min_length=1)]
    name: None = None
    refusal: None = None
    annotations: Empty = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty = None


ApiMessage = System | Developer | User | Assistant


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream carries besides text; `bimedix_progress` is an extension of ours."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    bimedix_progress: bool | None = None


class TextFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text without a fixed form."""


class ObjectFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object; enforced."""


class JsonSchema(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON Schema; always enforced, so `strict` changes nothing."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any] | UnsetType = UNSET
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON that matches a schema; enforced."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat


class SamplingFields(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an answer is decoded, for both kinds of completions. The server's settings replace missing fields."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    stop: StopTexts = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # extensions that llama.cpp's server and others have, too
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    # accepted and not used
    user: Annotated[str, Meta(max_length=512)] | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=0)] | None = None


def decode(data: bytes, kind: type[Body]) -> Body:
    """Return the body of a request as a value of this type.

    Raises:
        ApiError: 400, the body is not JSON, or a field, which the error names, does not fit the type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not JSON in UTF-8 ({error}). Correct it.", code="invalid_json") from None
    except RecursionError:
        raise invalid("The JSON is nested too deep. Make it flatter.", code="invalid_json") from None


def _refusal(said: str) -> ApiError:
    """Return msgspec's words, such as "Expected `int`, got `str` - at `$.n`", as an error of ours."""
    problem, _, place = said.partition(" - at ")
    param = place.strip("`").removeprefix("$").removeprefix(".")
    where = f" in `{param}`" if param else ""
    if named := re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", problem):
        field = f"{param}.{named[2]}" if param else named[2]
        if named[1] == "missing required":
            return invalid(f"The field `{named[2]}` is missing{where}. Add it.", field)
        return invalid(
            f"The field `{named[2][:60]}`{where} is unknown and would have no effect. Leave it out.",
            field,
            code="unknown_field",
        )
    if problem.startswith("Invalid "):
        value = problem.removeprefix("Invalid ").removeprefix("enum ").removeprefix("value ")
        return invalid(
            f"The value {value[:60]}{where} is not one of those that /openapi.json lists. Correct it.", param
        )
    expected, _, given = problem.partition(", got ")
    return invalid(f"{expected}{where}, but it is {given or 'not so'}; correct it.", param or None)


def check(holds: bool, message: str, param: str) -> None:
    """Refuse a request whose fields contradict each other.

    Raises:
        ApiError: 400, the condition does not hold.
    """
    if not holds:
        raise invalid(message, param)
