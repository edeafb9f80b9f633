"""Every exception of the SDK. The first branch says whose fault it is.

::

    DynamoError
    ├── UserError                what a user wrote: graph, deploy file, command line (exit code 2)
    │   ├── GraphError               the classes and edges of a graph
    │   └── ConfigError              a deploy file, ``--set`` or a flag
    ├── RequestError             what a client sent (HTTP 4xx)
    │   ├── InvalidRequest           400, names the field
    │   │   └── ContextLengthExceeded    the prompt and the output asked for do not fit the model
    │   ├── Unauthorized             401
    │   ├── NotFound                 404, an unknown model or route
    │   │   └── ModelNotFound            names the models there are
    │   └── BodyTooLarge             413
    ├── PluginError              an installed plugin is broken, doubled or missing
    ├── EngineError              a worker's engine
    │   ├── EngineStartError         it never became ready
    │   ├── EngineFailed             it broke while serving; another worker may do better
    │   ├── Overloaded               it is healthy and full; try later (HTTP 429)
    │   └── Unavailable              no worker can take the request now (HTTP 503)
    ├── WireError                between processes
    │   ├── HandshakeError           wire version or shared secret differ
    │   ├── ProtocolError            a peer broke the wire protocol
    │   ├── FrameTooLarge            a frame is over the limit
    │   ├── ConnectionLost           the peer is gone
    │   └── DeadlineExceeded         the time for this hop is over
    ├── TransferError            moving KV blocks
    │   ├── TicketExpired            past its deadline: prefill again
    │   └── TicketUnknown            used, released or never issued: prefill again
    └── LaunchError              a process could not be started or kept alive

Errors cross the wire as ``(code, message, param)`` and come back as the same class. ``is_retryable``
says whether the same request can succeed on another worker; the request flow decides what to do.
"""

from __future__ import annotations

from typing import ClassVar


class DynamoError(Exception):
    """Base of everything the SDK raises on purpose. ``code`` names the class on the wire and in JSON."""

    code: ClassVar[str] = "internal_error"
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class UserError(DynamoError):
    code = "user_error"


class GraphError(UserError):
    code = "graph_error"


class ConfigError(UserError):
    code = "config_error"


class RequestError(DynamoError):
    """A client's mistake. ``http_status`` is what the frontend answers; ``param`` names the field."""

    code = "bad_request"
    http_status: ClassVar[int] = 400


class InvalidRequest(RequestError):
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(RequestError):
    code = "invalid_api_key"
    http_status = 401


class NotFound(RequestError):
    code = "not_found"
    http_status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class BodyTooLarge(RequestError):
    code = "body_too_large"
    http_status = 413


class PluginError(DynamoError):
    code = "plugin_error"


class EngineError(DynamoError):
    code = "engine_error"


class EngineStartError(EngineError):
    code = "engine_start_failed"


class EngineFailed(EngineError):
    code = "engine_failed"
    is_retryable = True


class Overloaded(EngineError):
    code = "overloaded"
    is_retryable = True


class Unavailable(EngineError):
    code = "unavailable"
    is_retryable = True


class WireError(DynamoError):
    code = "wire_error"


class HandshakeError(WireError):
    code = "handshake_failed"


class ProtocolError(WireError):
    code = "protocol_error"


class FrameTooLarge(WireError):
    code = "frame_too_large"


class ConnectionLost(WireError):
    code = "connection_lost"
    is_retryable = True


class DeadlineExceeded(WireError):
    code = "deadline_exceeded"


class TransferError(DynamoError):
    code = "transfer_failed"
    is_retryable = True


class TicketExpired(TransferError):
    code = "ticket_expired"


class TicketUnknown(TransferError):
    code = "ticket_unknown"


class LaunchError(DynamoError):
    code = "launch_failed"


def error_from_code(code: str, message: str, *, param: str | None = None) -> DynamoError:
    """Rebuild an error that crossed the wire; an unknown code becomes a plain ``DynamoError``."""
    pending: list[type[DynamoError]] = [DynamoError]
    while pending:
        candidate = pending.pop()
        if candidate.code == code:
            return candidate(message, param=param)
        pending.extend(candidate.__subclasses__())
    return DynamoError(f"{code}: {message}", param=param)
