"""The files of the web chat, and the key that encrypts what a tab keeps of a chat.

The files hold no data, so they are sent without a key; everything that they do then needs one. The server reads them
once, at its start, so no request names a path on the disk.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["OPEN_PATHS", "SECURITY_HEADERS", "page_routes"]

# answered without a key; see access.py
OPEN_PATHS = ("/", "/static/")
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# only our own files run or load, nothing is sent elsewhere, no site may frame the page, and the browser refuses to read
# a string as markup (Trusted Types)
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str
    etag: str


def page_routes() -> list[Route]:
    """Return the routes of the page: `/`, `/static/NAME`, and `/api/tab-key`, which needs a key."""
    known = {
        entry.name: _read(entry.name)
        for entry in (files("bimedix_edge.server") / "static").iterdir()
        if entry.is_file()
    }
    # browsers write what a tab keeps to the disk; without this secret, which ends with the process, it is unreadable
    secret = secrets.token_bytes(32)

    async def index(request: Request) -> Response:
        return _answer(request, known["index.html"])

    async def static(request: Request) -> Response:
        file = known.get(request.path_params["name"])
        if file is None:
            return Response("This server has no such file.\n", 404, SECURITY_HEADERS, "text/plain")
        return _answer(request, file)

    async def tab_key(request: Request) -> Response:
        """Return 32 bytes in base64, the same for one tenant until the server stops."""
        key = hmac.digest(secret, request.state.tenant.encode(), "sha256")
        return JSONResponse({"key": base64.b64encode(key).decode()}, headers={"Cache-Control": "no-store"})

    return [
        Route("/", index, methods=["GET"]),
        Route("/static/{name}", static, methods=["GET"]),
        Route("/api/tab-key", tab_key, methods=["GET"]),
    ]


def _read(name: str) -> _File:
    data = (files("bimedix_edge.server") / "static" / name).read_bytes()
    return _File(data, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _answer(request: Request, file: _File) -> Response:
    """Return a file, or 304 if the browser has it already."""
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known:
        return Response(None, 304, headers)
    return Response(file.data, 200, headers, file.media_type)
