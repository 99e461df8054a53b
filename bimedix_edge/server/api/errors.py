"""Errors as HTTP answers, in the shape that OpenAI's clients read.

    {"error": {"message": "Expected …, but …; …", "type": "invalid_request_error", "param": "messages", "code": "…"}}

`message` is one sentence, `code` never changes its meaning; some codes bring numbers of their own, such as `place`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["ApiError", "defect", "invalid"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


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


def defect() -> ApiError:
    """Return the error for what only a defect of this program can cause."""
    return ApiError(
        500,
        "defect",
        "Expected an answer, but the server has a defect here; report it with the line that the server's log has.",
    )
