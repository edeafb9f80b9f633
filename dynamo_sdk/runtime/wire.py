"""The frames of the request plane: length-prefixed msgpack, one struct per kind.

``Items`` is the hot one: it carries what *all* streams of a connection have ready in one event-loop
tick, so an engine step with 64 sequences costs one message, not 64. Payloads stay encoded
(``msgspec.Raw``) until the stream that owns them reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from dynamo_sdk.errors import FrameTooLarge, ProtocolError

WIRE_VERSION: Final = 2
LENGTH_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 64 << 20


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First frame of both sides. ``nonce``: 16 random bytes, never reused."""

    version: int
    nonce: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    """Second frame of both sides: HMAC-SHA256 of both nonces under the shared secret (empty without)."""

    mac: bytes


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Client starts stream ``stream``. ``credit``: how many items the server may send unasked.
    ``deadline_s``: how long the client will wait, from the moment the frame is read."""

    stream: int
    method: str
    payload: msgspec.Raw
    credit: int
    deadline_s: float | None = None


class Items(msgspec.Struct, frozen=True, array_like=True, tag="i"):
    """Server's results, for many streams at once, in order per stream; then the streams that are over."""

    entries: list[tuple[int, msgspec.Raw]]
    ended: list[int] = []


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """Server ends a stream with an error (see ``dynamo_sdk.errors``)."""

    stream: int
    code: str
    message: str
    param: str | None = None


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Client no longer wants a stream; the server stops it and answers nothing more."""

    stream: int


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="credit"):
    """Client has room for ``num_items`` more."""

    stream: int
    num_items: int


class Goodbye(msgspec.Struct, frozen=True, array_like=True, tag="bye"):
    """Server drains: streams that run go on, new ones belong elsewhere."""


Frame = Hello | Proof | Open | Items | Failed | Cancel | Credit | Goodbye

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame, *, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """Length prefix and body. Raises ``FrameTooLarge`` at the sender, before a byte is written."""
    buffer = bytearray(LENGTH_BYTES)
    _encoder.encode_into(frame, buffer, LENGTH_BYTES)
    length = len(buffer) - LENGTH_BYTES
    if length > max_bytes:
        raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {max_bytes}")
    buffer[:LENGTH_BYTES] = length.to_bytes(LENGTH_BYTES, "little")
    return bytes(buffer)


def decode_frame(body: bytes | memoryview) -> Frame:
    """Raises ``ProtocolError`` for anything that is no frame."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a frame: {error}") from error


class FrameSplitter:
    """Cuts a byte stream into frame bodies. Feed it whatever the socket gave. ``max_bytes`` may be changed
    between frames."""

    def __init__(self, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Yield each complete body; what is left waits for more. Raises ``FrameTooLarge``."""
        pending = self._pending
        pending += received
        start = 0
        try:
            while len(pending) - start >= LENGTH_BYTES:
                length = int.from_bytes(pending[start : start + LENGTH_BYTES], "little")
                if length > self.max_bytes:
                    raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {self.max_bytes}")
                end = start + LENGTH_BYTES + length
                if len(pending) < end:
                    break
                body = bytes(pending[start + LENGTH_BYTES : end])
                start = end
                yield body
        finally:
            del pending[:start]
