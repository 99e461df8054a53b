"""Routes besides completions and the page: health, metrics, models, tokens, and the OpenAPI document."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bimedix_edge.server.api.errors import ApiError, retry_after
from bimedix_edge.server.api.openapi import document
from bimedix_edge.server.api.requests import DetokenizeRequest, TokenizeRequest
from bimedix_edge.server.api.responses import DetokenizeAnswer, Health, Model, Models, TokenizeAnswer
from bimedix_edge.server.front.metrics import metrics_text
from bimedix_edge.server.front.service import JSON, Service, answer, ask, read, route

__all__ = ["HEALTH", "service_routes"]

# monitors have no key
HEALTH = "/health"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def service_routes(service: Service) -> list[Route]:
    """Return the routes."""
    return [
        route("GET", HEALTH, _health, service),
        route("GET", "/metrics", _metrics, service),
        route("GET", "/openapi.json", _openapi, service),
        route("GET", "/v1/models", _models, service),
        route("GET", "/v1/models/{name:path}", _model, service),
        route("POST", "/tokenize", _tokenize, service),
        route("POST", "/detokenize", _detokenize, service),
    ]


async def _health(service: Service, request: Request) -> Response:
    if service.model.state != "ready":
        service.facts()
        raise ApiError(
            503,
            "loading",
            f"The model is {service.model.state}. Ask again in a moment.",
            headers=retry_after(2),
        )
    return answer(Health())


async def _metrics(service: Service, request: Request) -> Response:
    text = metrics_text(await service.model.stats(), service.model.state, service.requests)
    return Response(text, media_type=_PROMETHEUS)


async def _models(service: Service, request: Request) -> Response:
    facts = service.facts()
    return answer(Models([Model(facts.name, facts.created, facts.notice, facts.licence)]))


async def _model(service: Service, request: Request) -> Response:
    facts = service.facts()
    if request.path_params["name"] != facts.name:
        raise ApiError(404, "model_not_found", f"This server has only the model {facts.name}. Correct the name.")
    return answer(Model(facts.name, facts.created, facts.notice, facts.licence))


async def _tokenize(service: Service, request: Request) -> Response:
    asked = await read(service, request, TokenizeRequest)
    service.facts()
    return answer(TokenizeAnswer(await ask(service.model.tokenize(asked.content))))


async def _detokenize(service: Service, request: Request) -> Response:
    asked = await read(service, request, DetokenizeRequest)
    service.facts()
    return answer(DetokenizeAnswer(await ask(service.model.detokenize(asked.tokens), "tokens")))


async def _openapi(service: Service, request: Request) -> Response:
    return Response(document(), media_type=JSON)
