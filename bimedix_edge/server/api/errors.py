"""Errors as HTTP answers, in the shape that OpenAI's clients read.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "messages", "code": "…"}}

`message` says in sentences what is wrong and what to do. The meaning of a `code` stays. Some codes bring numbers of
their own, such as `place`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from bimedix_edge.server.link.messages import Failed

__all__ = ["ApiError", "defect", "failure", "invalid", "retry_after"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}
_STATUS = {"prompt": 400, "image": 400, "schema": 400, "queue_full": 429, "lost": 503, "engine": 500}
_CODES = {
    "prompt": "invalid_prompt",
    "image": "invalid_image",
    "schema": "unsupported_schema",
    "queue_full": "queue_full",
    "lost": "lost",
    "engine": "engine_failed",
}
_PARAMS = {"prompt": "messages", "image": "messages", "schema": "response_format"}


class ApiError(Exception):
    """The error that answers a request.

    Args:
        status: HTTP status.
        code: Code for programs.
        message: Sentences for people: what is wrong, its cause, what to do.
        param: Field of the request that is wrong, such as `messages[0].content`.
        headers: Headers that the answer needs; see `retry_after`.

    Attributes:
        numbers: Numbers that belong to the code; they become fields of the error object.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        self.numbers: dict[str, int] = {}

    def error(self) -> dict[str, object]:
        """Return the error object."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code, **self.numbers}

    def body(self) -> bytes:
        """Return the body of the answer, JSON in UTF-8."""
        return msgspec.json.encode({"error": self.error()})


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that says after how many seconds to ask again; at least 1."""
    return {"Retry-After": str(max(1, round(seconds)))}


def invalid(message: str, param: str | None = None, *, code: str = "invalid_value") -> ApiError:
    """Return the error for a request with a field that is not valid."""
    return ApiError(400, code, message, param=param)


def failure(failed: Failed) -> ApiError:
    """Return the error for a request that failed; the text written before is not part of it."""
    code = "context_length_exceeded" if failed.n_prompt_tokens is not None else _CODES[failed.kind]
    wait_s = failed.retry_after_s or (2.0 if failed.kind in ("queue_full", "lost") else None)
    error = ApiError(
        _STATUS[failed.kind],
        code,
        failed.message,
        param=_PARAMS.get(failed.kind),
        headers=None if wait_s is None else retry_after(wait_s),
    )
    numbers = {"n_prompt_tokens": failed.n_prompt_tokens, "n_ctx": failed.n_ctx, "place": failed.place}
    error.numbers = {name: number for name, number in numbers.items() if number is not None}
    return error


def defect() -> ApiError:
    """Return the error for what only a defect of this program can cause."""
    return ApiError(500, "defect", "The server has a defect. Report it with the line in the server's log.")
