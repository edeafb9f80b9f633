"""Server-sent events from byte templates: per token only what is new gets encoded.

A chunk of a stream differs from the one before in its text alone, so everything else is encoded once per
request and choice. That is a twentieth of what encoding a whole object costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

encode_json = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


class ChunkTemplate:
    """The chunks of one choice, which all start with ``envelope``. ``lead`` and ``close`` are what stands
    around the text: for chat ``"delta":{"content":`` and ``}``, for completions ``"text":`` and nothing."""

    __slots__ = ("_after", "_close", "_head", "_tail")

    def __init__(
        self,
        envelope: bytes,
        *,
        index: int,
        lead: bytes,
        close: bytes,
        shows_usage: bool,
    ) -> None:
        self._head = envelope + b'"choices":[{"index":%d,' % index + lead
        self._close = close
        # With `include_usage` every chunk has the key, and all but the last have null.
        self._after = b'}],"usage":null}\n\n' if shows_usage else b"}]}\n\n"
        self._tail = close + b',"logprobs":null,"finish_reason":null' + self._after

    def text(self, text: str) -> bytes:
        return self._head + encode_json(text) + self._tail

    def full(
        self,
        text: str,
        *,
        logprobs: bytes = b"null",
        finish_reason: str | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> bytes:
        """``logprobs``: JSON. ``token_ids`` is shown where it is not None."""
        ids = b"" if token_ids is None else b',"token_ids":' + encode_json(token_ids)
        scores = b',"logprobs":' + logprobs
        reason = b',"finish_reason":' + encode_json(finish_reason)
        return b"".join((self._head, encode_json(text), self._close, scores, reason, ids, self._after))


def envelope(*, id: str, object: str, created_s: int, model: str) -> bytes:
    """The start of a chunk's event, up to and not including ``"choices"``."""
    return b'data: {"id":%b,"object":%b,"created":%d,"model":%b,"system_fingerprint":null,' % (
        encode_json(id),
        encode_json(object),
        created_s,
        encode_json(model),
    )
