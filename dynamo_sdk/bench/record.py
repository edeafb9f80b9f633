"""What is kept of one request."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ErrorKind(StrEnum):
    """Why a request failed. ``http`` is reported with its status, such as ``http_429``."""

    CONNECT = "connect"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    HTTP = "http"
    STREAM = "stream"
    MALFORMED = "malformed"
    EMPTY = "empty"


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``--records``. Moments are seconds after the start of the load, the others durations.

    ``ttft_s`` ends with the first chunk that carries output, ``e2e_s`` with the last byte; both start at
    ``sent_s``. Token counts without ``asked`` are the server's own, None where it does not say.
    """

    index: int
    due_s: float | None
    sent_s: float
    ttft_s: float | None
    e2e_s: float
    num_chunks: int
    max_gap_s: float | None
    num_asked_input_tokens: int
    num_asked_output_tokens: int
    num_input_tokens: int | None
    num_cached_tokens: int | None
    num_output_tokens: int | None
    finish_reason: str | None
    error: str | None
    message: str | None
    is_warmup: bool = False

    @property
    def itl_s(self) -> float | None:
        """Seconds per output token after the first; None for an answer of one token."""
        if self.ttft_s is None or self.num_output_tokens is None or self.num_output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.num_output_tokens - 1)

    @property
    def lag_s(self) -> float | None:
        """How late the client sent it; None where it was not due at a time."""
        return None if self.due_s is None else self.sent_s - self.due_s
