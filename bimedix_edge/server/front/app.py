"""The ASGI application: routes, and around them access control and what every answer has."""

from __future__ import annotations

import contextlib
import secrets
import time
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bimedix_edge.server.api.errors import ApiError, defect
from bimedix_edge.server.front.access import Access, Keys, Names
from bimedix_edge.server.front.limits import RateLimit
from bimedix_edge.server.front.page import OPEN_PATHS, page_routes
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
# nginx's status for a client that left before its answer
_GONE = 499


def build_app(service: Service, *, names: Names, keys: Keys, access_log: bool = False) -> ASGIApp:
    """Return the application, the web page included.

    Args:
        service: What the routes share.
        names: Names of the server.
        keys: Keys that open it.
        access_log: Whether to log a line for each request, with method, route, status and milliseconds. It holds no
            query, no key, and nothing of a body.
    """
    routes = [*completion_routes(service), *service_routes(service), *page_service_routes(service), *page_routes()]
    router = Router(routes, redirect_slashes=False)
    rate = RateLimit(service.limits.requests_per_s, service.limits.burst)
    access = Access(router, names=names, keys=keys, open_paths=(HEALTH, SESSION, *OPEN_PATHS), rate=rate)
    return _Outermost(access, service, access_log=access_log)


class _Outermost:
    """Turns every error into an answer, adds the common headers, counts, and logs."""

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
                own = {name.lower() for name, _ in message["headers"]}
                common = {**_HEADERS, "x-request-id": request_id}
                more = [(name.encode(), value.encode()) for name, value in common.items() if name.encode() not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        scope.setdefault("state", {})
        scope["app"] = self  # its presence makes Starlette raise errors that it would answer itself otherwise
        try:
            async with contextlib.AsyncExitStack() as stack:
                scope["state"]["until_answered"] = stack
                await self._app(scope, receive, send_on)
        except ClientDisconnect:
            pass  # there is no client to answer
        except Exception as error:
            answer = _answer(error)
            if answer.code == "defect":
                # without the error's message and the request: they may hold what a user wrote
                log.error("defect in request %s", request_id, exc_info=error)
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
            message = f"This path has only the methods {allowed}. Use one of them."
            return ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})
        return ApiError(404, "not_found", "This server has no such path. See /openapi.json.")
    return defect()


async def _send(error: ApiError, send: Send) -> None:
    body = error.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
