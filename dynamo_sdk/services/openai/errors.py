"""From an exception to what a client reads: a status and OpenAI's error object."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from dynamo_sdk.errors import (
    DeadlineExceeded,
    DynamoError,
    InvalidRequest,
    Overloaded,
    RequestError,
    Unauthorized,
    Unavailable,
)

RETRY_AFTER_S = 1


class NotSupportedYet(InvalidRequest):
    """A field of the API that this server understands but cannot honour."""

    code = "not_supported"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"
    http_status: ClassVar[int] = 405


class BodyTimeout(RequestError):
    code = "request_timeout"
    http_status: ClassVar[int] = 408


class UnsupportedEncoding(RequestError):
    code = "unsupported_content_encoding"
    http_status: ClassVar[int] = 415


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error object; ``param`` is the path of the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject


class HttpError(msgspec.Struct, frozen=True):
    status: int
    body: ErrorBody

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.status in (429, 503):
            return [(b"retry-after", b"%d" % RETRY_AFTER_S)]
        return []


def to_http(error: Exception) -> HttpError:
    """What to answer. An exception that is not ours tells the client nothing about our insides."""
    if not isinstance(error, DynamoError):
        body = ErrorObject("the server failed to answer; its log says why", "server_error", None, "internal")
        return HttpError(500, ErrorBody(body))
    status = _status(error)
    return HttpError(
        status, ErrorBody(ErrorObject(error.message, _type(error, status), error.param, error.code))
    )


def error_event(error: Exception) -> bytes:
    """The SSE event that ends a stream which has already begun."""
    return b"data: " + msgspec.json.encode(to_http(error).body) + b"\n\n"


def _status(error: DynamoError) -> int:
    if isinstance(error, RequestError):
        return error.http_status
    if isinstance(error, Overloaded):
        return 429
    if isinstance(error, DeadlineExceeded):
        return 504
    if isinstance(error, Unavailable) or error.is_retryable:
        return 503
    return 500


def _type(error: DynamoError, status: int) -> str:
    if isinstance(error, Unauthorized):
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
