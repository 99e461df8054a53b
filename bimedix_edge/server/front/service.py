"""What the routes share, and how they read requests and write answers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bimedix_edge.errors import BimedixEdgeError, HardwareError, InputError, UsageError
from bimedix_edge.server.api.errors import ApiError, invalid, retry_after
from bimedix_edge.server.api.fields import decode
from bimedix_edge.server.front.access import OneTimeToken
from bimedix_edge.server.front.limits import BodyRoom, Limits
from bimedix_edge.server.front.metrics import RequestCounts
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import ModelFacts

__all__ = ["JSON", "Service", "answer", "ask", "read", "route"]

JSON = "application/json"
_JSON_TYPE = re.compile(r"application/json\s*(;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)
Asked = TypeVar("Asked")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """What the routes share.

    Attributes:
        model: The model's process.
        limits: What a client may take.
        room: Memory for the bodies of requests.
        requests: Counts for `/metrics`.
        token: Token of the page's link; None where the operator gives out the keys.
        seed: Seed of answers whose request has none; None draws one.
    """

    model: ModelProcess
    limits: Limits
    room: BodyRoom
    requests: RequestCounts
    token: OneTimeToken | None = None
    seed: int | None = None

    def facts(self) -> ModelFacts:
        """Return what the model is.

        Raises:
            ApiError: 503, it is still being loaded, or cannot be.
        """
        if self.model.state == "failed":
            raise ApiError(
                503,
                "lost",
                "The model cannot be loaded. See the server's messages, and start the server again.",
                headers=retry_after(60),
            )
        if self.model.facts is None:
            raise ApiError(
                503,
                "loading",
                "The model is still being loaded. Ask again in a moment.",
                headers=retry_after(2),
            )
        return self.model.facts


async def read(service: Service, request: Request, kind: type[Asked]) -> Asked:
    """Return a request's JSON as a value of this type; it takes up memory until the request is answered.

    Raises:
        ApiError: 400, 413, 415 or 503.
    """
    content_type = request.headers.get("content-type", "")
    if not _JSON_TYPE.fullmatch(content_type.strip()) or "content-encoding" in request.headers:
        raise ApiError(
            415,
            "unsupported_media_type",
            f"The body is not sent as `Content-Type: {JSON}` without a Content-Encoding. Send plain JSON.",
        )
    stack: contextlib.AsyncExitStack = request.state.until_answered
    length = request.headers.get("content-length")
    body = service.room.body(request.receive, int(length) if length else None, service.limits.body_bytes)
    return decode(await stack.enter_async_context(body), kind)


def answer(value: msgspec.Struct | bytes) -> Response:
    """Return a response of JSON."""
    return Response(value if isinstance(value, bytes) else msgspec.json.encode(value), media_type=JSON)


async def ask(work: Awaitable[Result], param: str | None = None) -> Result:
    """Return the reply of the model's process.

    Args:
        work: A call to it.
        param: Field of the request that the call is about.

    Raises:
        ApiError: The process refuses, or is gone.
    """
    try:
        return await work
    except (InputError, UsageError) as error:
        raise invalid(str(error), param) from None
    except HardwareError as error:
        raise ApiError(503, "lost", str(error), headers=retry_after(2)) from None
    except BimedixEdgeError as error:
        raise ApiError(500, "engine_failed", str(error)) from None


def route(
    method: str, path: str, endpoint: Callable[[Service, Request], Awaitable[ASGIApp]], service: Service
) -> Route:
    """Return a route whose endpoint gets the service."""

    async def run(request: Request) -> Any:
        return await endpoint(service, request)

    return Route(path, run, methods=[method])
