"""What there is beside completions: models, tokens, health, metrics, and what the page asks for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Awaitable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bimedix_edge.errors import BimedixEdgeError
from bimedix_edge.server.answers import unless_gone
from bimedix_edge.server.api_errors import ApiError
from bimedix_edge.server.api_requests import DetokenizeRequest, LookRequest, SessionRequest, TokenizeRequest
from bimedix_edge.server.api_responses import (
    Facts,
    FactsLimits,
    Health,
    LookAnswer,
    Model,
    Models,
    SessionAnswer,
    Text,
    Tokens,
)
from bimedix_edge.server.data_urls import data_url_bytes
from bimedix_edge.server.messages import ImagePart
from bimedix_edge.server.metrics import metrics_text
from bimedix_edge.server.openapi import document
from bimedix_edge.server.service import JSON, Service, answer, read, refused

__all__ = ["OPEN_PATHS", "service_routes"]

# a monitor has no key, and a page gets its key here
OPEN_PATHS = ("/health", "/api/session")

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def service_routes(service: Service) -> list[Route]:
    """Return the routes."""

    async def health(request: Request) -> Response:
        if service.model.state != "ready":
            service.facts()
            raise ApiError(
                503,
                "loading",
                f"Expected a model, but it is {service.model.state}; ask again in a moment.",
                retry_after_s=2,
            )
        return answer(Health())

    async def metrics(request: Request) -> Response:
        text = metrics_text(await service.model.stats(), service.model.state, service.requests)
        return Response(text, media_type=_PROMETHEUS)

    async def models(request: Request) -> Response:
        facts = service.facts()
        return answer(Models([Model(facts.name, facts.created, facts.notice, facts.licence)]))

    async def model(request: Request) -> Response:
        facts = service.facts()
        if request.path_params["name"] != facts.name:
            raise ApiError(
                404, "model_not_found", f"Expected the model {facts.name}, but another was asked for; correct its name."
            )
        return answer(Model(facts.name, facts.created, facts.notice, facts.licence))

    async def tokenize(request: Request) -> Response:
        asked = await read(service, request, TokenizeRequest)
        service.facts()
        return answer(Tokens(await _ask(service.model.tokenize(asked.content))))

    async def detokenize(request: Request) -> Response:
        asked = await read(service, request, DetokenizeRequest)
        service.facts()
        return answer(Text(await _ask(service.model.detokenize(asked.tokens), "tokens")))

    async def facts(request: Request) -> Response:
        known, limits = service.facts(), service.limits
        most_images = min(limits.images, (known.n_ctx - 1) // known.image_tokens)
        allowed = FactsLimits(
            known.n_ctx, known.n_parallel, known.image_tokens, known.max_tokens, most_images, limits.body_bytes
        )
        return answer(
            Facts(
                known.name, known.notice, known.licence, allowed, known.sampling.temperature, list(known.presets)
            )
        )

    async def look(request: Request) -> Response:
        asked = await read(service, request, LookRequest)
        known = service.facts()
        image = ImagePart(data_url_bytes(asked.image, "image"), asked.window, asked.frame)
        seen = await unless_gone(request.receive, _ask(service.model.look(image), "image"))
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

    async def session(request: Request) -> Response:
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

    async def openapi(request: Request) -> Response:
        return Response(document(), media_type=JSON)

    def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["GET"])

    def post(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, endpoint, methods=["POST"])

    return [
        get("/health", health),
        get("/metrics", metrics),
        get("/openapi.json", openapi),
        get("/v1/models", models),
        get("/v1/models/{name:path}", model),
        post("/tokenize", tokenize),
        post("/detokenize", detokenize),
        get("/api/facts", facts),
        post("/api/look", look),
        post("/api/session", session),
    ]
