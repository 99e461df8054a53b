"""Routes of the web page besides completions: facts, what the model sees of an image, and the page's key."""

from __future__ import annotations

import base64

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bimedix_edge.server.api.data_urls import data_url_bytes
from bimedix_edge.server.api.errors import ApiError
from bimedix_edge.server.api.requests import PreviewRequest, SessionRequest
from bimedix_edge.server.api.responses import Facts, FactsLimits, PreviewAnswer, SessionAnswer
from bimedix_edge.server.front.service import Service, answer, ask, read, route
from bimedix_edge.server.front.streams import unless_gone
from bimedix_edge.server.link.messages import ImagePart

__all__ = ["SESSION", "page_service_routes"]

# a page without a key gets one here
SESSION = "/api/session"


def page_service_routes(service: Service) -> list[Route]:
    """Return the routes."""
    return [
        route("GET", "/api/facts", _facts, service),
        route("POST", "/api/look", _preview, service),
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


async def _preview(service: Service, request: Request) -> Response:
    asked = await read(service, request, PreviewRequest)
    known = service.facts()
    image = ImagePart(data_url_bytes(asked.image, "image"), asked.window, asked.frame)
    preview = await unless_gone(request.receive, ask(service.model.preview(image), "image"))
    return answer(
        PreviewAnswer(
            f"data:image/png;base64,{base64.b64encode(preview.png).decode('ascii')}",
            preview.sha256,
            preview.width_px,
            preview.height_px,
            preview.n_frames,
            list(preview.notes),
            list(preview.warnings),
            preview.tags,
            list(preview.presets),
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
            "The link's token is wrong or was used already. Enter the key, or restart the server for a new link.",
        )
    return answer(SessionAnswer(key))
