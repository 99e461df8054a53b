"""The ASGI application: routes, and around them who is answered and what every answer has."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bimedix_edge.server.api.errors import ApiError, defect
from bimedix_edge.server.front.access import Access, Keys, Names
from bimedix_edge.server.front.limits import RateLimit
from bimedix_edge.server.front.routes_completions import completion_routes
from bimedix_edge.server.front.routes_page import SESSION, page_service_routes
from bimedix_edge.server.front.routes_service import HEALTH, service_routes
from bimedix_edge.server.front.service import Service
from bimedix_edge.server.front.serving import log

__all__ = ["build_app"]

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_NO_ROUTE = "none"
# nginx's number for a client that went before it had an answer
_GONE = 499


def build_app(
    service: Service,
    *,
    names: Names,
    keys: Keys,
    page: Sequence[Route] = (),
    page_open_paths: Sequence[str] = (),
    access_log: bool = False,
) -> ASGIApp:
    """Return the application.

    Args:
        service: see there.
        names: that the server goes by.
        keys: that open it.
        page: routes of the web page.
        page_open_paths: of these, those that are answered without a key.
        access_log: whether a line for each request is logged: method, route, status, milliseconds; never a query, a
            key, or anything of a body.
    """
    routes = [*completion_routes(service), *service_routes(service), *page_service_routes(service), *page]
    router = Router(routes, redirect_slashes=False)
    rate = RateLimit(service.limits.requests_per_s, service.limits.burst)
    access = Access(router, names=names, keys=keys, open_paths=(HEALTH, SESSION, *page_open_paths), rate=rate)
    return _Outermost(access, service, access_log=access_log)


class _Outermost:
    """Turns every error into an answer, adds the headers that all have, and counts and logs."""

    def __init__(self, app: ASGIApp, service: Service, *, access_log: bool) -> None:
        self._app = app
        self._service = service
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start_s, request_id, status = time.monotonic(), secrets.token_hex(8), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                own = {**_HEADERS, "x-request-id": request_id}
                more = [(name.encode(), value.encode()) for name, value in own.items() if name.encode() not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        scope.setdefault("state", {})
        scope["app"] = self  # its presence makes Starlette raise what it would answer in its own words
        try:
            async with contextlib.AsyncExitStack() as stack:
                scope["state"]["until_answered"] = stack
                await self._app(scope, receive, send_on)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            answer = _answer(error)
            if answer.code == "defect":
                # the message and the request stay out: they may hold what somebody wrote
                log.error("a defect at %s", request_id, exc_info=error)
            if not status:
                await _send(answer, send_on)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._service.requests.count(route, status or _GONE)
            if self._access_log:
                took_ms = (time.monotonic() - start_s) * 1e3
                log.info("%s %s %s %.0f ms %s", scope["method"][:10], route, status or _GONE, took_ms, request_id)


def _answer(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            message = f"Expected one of the methods {allowed}, but the request has another; change it."
            return ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})
        return ApiError(
            404, "not_found", "Expected a path of this server's, but there is none of that name; see /openapi.json."
        )
    return defect()


async def _send(error: ApiError, send: Send) -> None:
    body = error.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
