"""What the web page asks for beside completions: facts, what the model sees of an image, and its key."""

from __future__ import annotations

import base64

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bimedix_edge.server.api.data_urls import data_url_bytes
from bimedix_edge.server.api.errors import ApiError
from bimedix_edge.server.api.requests import LookRequest, SessionRequest
from bimedix_edge.server.api.responses import Facts, FactsLimits, LookAnswer, SessionAnswer
from bimedix_edge.server.front.service import Service, answer, ask, read, route
from bimedix_edge.server.front.streams import unless_gone
from bimedix_edge.server.link.messages import ImagePart

__all__ = ["SESSION", "page_service_routes"]

# where a page without a key gets one
SESSION = "/api/session"


def page_service_routes(service: Service) -> list[Route]:
    """Return the routes."""
    return [
        route("GET", "/api/facts", _facts, service),
        route("POST", "/api/look", _look, service),
        route("POST", SESSION, _session, service),
    ]


async def _facts(service: Service, request: Request) -> Response:
    known, limits = service.facts(), service.limits
    most_images = min(limits.images, (known.n_ctx - 1) // known.image_tokens)
    allowed = FactsLimits(
        known.n_ctx, known.n_parallel, known.image_tokens, known.max_tokens, most_images, limits.body_bytes
    )
    return answer(
        Facts(known.name, known.notice, known.licence, allowed, known.sampling.temperature, list(known.presets))
    )


async def _look(service: Service, request: Request) -> Response:
    asked = await read(service, request, LookRequest)
    known = service.facts()
    image = ImagePart(data_url_bytes(asked.image, "image"), asked.window, asked.frame)
    seen = await unless_gone(request.receive, ask(service.model.look(image), "image"))
    return answer(
        LookAnswer(
            f"data:image/png;base64,{base64.b64encode(seen.png).decode('ascii')}",
            seen.sha256,
            seen.width_px,
            seen.height_px,
            seen.n_frames,
            list(seen.notes),
            list(seen.warnings),
            seen.tags,
            list(seen.presets),
            known.notice,
        )
    )


async def _session(service: Service, request: Request) -> Response:
    asked = await read(service, request, SessionRequest)
    key = service.token.take(asked.token) if service.token is not None else None
    if key is None:
        raise ApiError(
            401,
            "invalid_token",
            "Expected the token of the link that the server printed, but this is another or was used already; "
            "enter the key itself, or start the server again.",
        )
    return answer(SessionAnswer(key))
