"""Every bound of the HTTP server in one place, so that nothing a client does grows or lasts for ever."""

from __future__ import annotations

import msgspec

_MIB = 1024 * 1024


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """``head``: request line and headers. ``max_buffered_bytes``: the bodies of all requests being served,
    together; beyond it they are refused as overload. ``write_stall_timeout_s``: how long a client may leave
    what was sent to it unread, from the last 4 KiB that it took on. ``deadline_s``: the longest life of a
    request from its last byte on."""

    max_body_bytes: int = 32 * _MIB
    max_buffered_bytes: int = 1024 * _MIB
    max_head_bytes: int = 64 * 1024
    max_connections: int = 4096
    max_choices: int = 1024
    head_timeout_s: float = 20.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    write_stall_timeout_s: float = 60.0
    deadline_s: float = 1800.0
    drain_timeout_s: float = 30.0
    max_concurrent_embeddings: int = 32
