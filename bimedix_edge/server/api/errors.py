"""Errors as HTTP answers, in the shape that OpenAI's clients read.

    {"error": {"message": "Expected …, but …; …", "type": "invalid_request_error", "param": "messages", "code": "…"}}

`message` is one sentence, `code` never changes its meaning; some codes bring numbers of their own, such as `place`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from bimedix_edge.server.link.messages import Failed

__all__ = ["ApiError", "defect", "failure", "invalid"]

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
    """A request that gets no answer but this.

    Args:
        status: of HTTP.
        code: for programs.
        message: one sentence: what was expected, what was given, what to do.
        param: which field of the request is meant, such as `messages[0].content`.
        retry_after_s: after how many seconds asking again makes sense.
        headers: sent with it.
        extra: numbers that belong to the code, merged into the error object.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after_s)))
        self.extra = dict(extra or {})

    def error(self) -> dict[str, object]:
        """Return the error object."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code, **self.extra}

    def body(self) -> bytes:
        """Return the answer's body, JSON in UTF-8."""
        return msgspec.json.encode({"error": self.error()})


def invalid(message: str, param: str | None = None, *, code: str = "invalid_value") -> ApiError:
    """Return the error for a request that says what it must not."""
    return ApiError(400, code, message, param=param)


def failure(failed: Failed) -> ApiError:
    """Return the error that tells a client of a failure; what was written before is not part of it."""
    numbers = {"n_prompt_tokens": failed.n_prompt_tokens, "n_ctx": failed.n_ctx, "place": failed.place}
    code = "context_length_exceeded" if failed.n_prompt_tokens is not None else _CODES[failed.kind]
    return ApiError(
        _STATUS[failed.kind],
        code,
        failed.message,
        param=_PARAMS.get(failed.kind),
        retry_after_s=failed.retry_after_s or (2.0 if failed.kind in ("queue_full", "lost") else None),
        extra={name: number for name, number in numbers.items() if number is not None},
    )


def defect() -> ApiError:
    """Return the error for what only a defect of this program can cause."""
    return ApiError(
        500,
        "defect",
        "Expected an answer, but the server has a defect here; report it with the line that the server's log has.",
    )
