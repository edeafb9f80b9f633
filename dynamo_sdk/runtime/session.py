"""One connection of the request plane as a state machine, without a socket.

``receive(body)`` takes a frame and returns what happened; the other methods say what this side wants;
``take_output()`` is what must be written, already coalesced. The shell around it (``connection``) only
moves bytes and runs tasks.

::

    state     may receive
    HELLO     Hello                        -> sends Proof
    PROOF     Proof                        -> OPEN, or HandshakeError
    OPEN      client: Items Failed Goodbye       server: Open Cancel Credit
    CLOSED    nothing

A frame for a stream that is already over is ignored: it crossed our own Cancel or Failed on the way.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from dynamo_sdk.errors import DynamoError, FrameTooLarge, HandshakeError, ProtocolError, error_from_code

from .wire import (
    MAX_FRAME_BYTES,
    WIRE_VERSION,
    Cancel,
    Credit,
    Failed,
    Frame,
    Goodbye,
    Hello,
    Items,
    Open,
    Proof,
    decode_frame,
    encode_frame,
)

NONCE_BYTES = 16
ENTRY_OVERHEAD_BYTES = 16  # array header, stream number and end mark of one entry, rounded up
MAX_MESSAGE_CHARS = 4096
FRAME_MARGIN_BYTES = 128  # what a frame needs beside its entries


class Side(Enum):
    CLIENT = b"client"
    SERVER = b"server"


class State(Enum):
    HELLO = auto()
    PROOF = auto()
    OPEN = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake succeeded."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Server: a client started a stream."""

    stream: int
    method: str
    payload: msgspec.Raw
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class Received:
    """Client: new items of any streams, then the streams that are over."""

    entries: list[tuple[int, msgspec.Raw]]
    ended: list[int]


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """Client: the server ended a stream with an error."""

    stream: int
    error: DynamoError


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Server: the client gave a stream up."""

    stream: int


@dataclass(frozen=True, slots=True)
class Credited:
    """Server: the client has room again."""

    stream: int


@dataclass(frozen=True, slots=True)
class Draining:
    """Client: open new streams elsewhere."""


Event = Ready | Opened | Received | StreamFailed | Cancelled | Credited | Draining


@dataclass(slots=True)
class Session:
    """``nonce``: fresh random bytes, given by the caller because this class knows no randomness."""

    side: Side
    nonce: bytes
    secret: str | None = None
    max_frame_bytes: int = MAX_FRAME_BYTES
    state: State = State.HELLO
    _peer_nonce: bytes = b""
    _output: list[bytes] = field(default_factory=list)
    _items: list[tuple[int, msgspec.Raw]] = field(default_factory=list)
    _ended: list[int] = field(default_factory=list)
    _items_bytes: int = 0
    _credit: dict[int, int] = field(default_factory=dict)
    _next_stream: int = 1

    def __post_init__(self) -> None:
        self._send(Hello(WIRE_VERSION, self.nonce))

    # -- both sides

    def receive(self, body: bytes) -> Event | None:
        """Take one frame. Raises ``ProtocolError`` or ``HandshakeError``: the connection must be closed."""
        frame = decode_frame(body)
        if self.state is State.OPEN:
            return self._receive_server(frame) if self.side is Side.SERVER else self._receive_client(frame)
        if self.state is State.HELLO and isinstance(frame, Hello):
            self._receive_hello(frame)
            return None
        if self.state is State.PROOF and isinstance(frame, Proof):
            return self._receive_proof(frame)
        raise ProtocolError(f"{type(frame).__name__} frame in state {self.state.name}")

    def take_output(self) -> bytes:
        """Everything to write now; empty if nothing. Call once per event-loop tick."""
        self._seal_items()
        output, self._output = self._output, []
        return output[0] if len(output) == 1 else b"".join(output)

    @property
    def has_output(self) -> bool:
        return bool(self._output or self._items or self._ended)

    def close(self) -> None:
        self.state = State.CLOSED
        self._credit.clear()

    # -- client

    def open(self, method: str, payload: msgspec.Raw, *, credit: int, deadline_s: float | None) -> int:
        """Start a stream; returns its number. Raises ``FrameTooLarge``; the connection stays usable."""
        stream = self._next_stream
        self._send(Open(stream, method, payload, credit, deadline_s))
        self._next_stream += 1
        return stream

    def cancel(self, stream: int) -> None:
        self._send(Cancel(stream))

    def grant(self, stream: int, num_items: int) -> None:
        self._send(Credit(stream, num_items))

    # -- server

    def credit(self, stream: int) -> int:
        """How many items the client still has room for; 0 also for streams that are over."""
        return self._credit.get(stream, 0)

    def is_open(self, stream: int) -> bool:
        return stream in self._credit

    def send_item(self, stream: int, payload: bytes) -> None:
        """Queue one item; needs credit. Ignored when the stream is over."""
        credit = self._credit.get(stream)
        if credit is None:
            return
        assert credit > 0, "send_item without credit"
        if len(payload) > self.max_frame_bytes - FRAME_MARGIN_BYTES:
            raise FrameTooLarge(f"an item of {len(payload)} bytes; the limit is {self.max_frame_bytes}")
        self._credit[stream] = credit - 1
        num_bytes = len(payload) + ENTRY_OVERHEAD_BYTES
        if self._items_bytes + num_bytes > self.max_frame_bytes - FRAME_MARGIN_BYTES // 2:
            self._seal_items()
        self._items.append((stream, msgspec.Raw(payload)))
        self._items_bytes += num_bytes

    def end(self, stream: int) -> None:
        if self._credit.pop(stream, None) is not None:
            self._ended.append(stream)
            self._items_bytes += ENTRY_OVERHEAD_BYTES

    def fail(self, stream: int, error: DynamoError) -> None:
        if self._credit.pop(stream, None) is not None:
            param = None if error.param is None else _sendable(error.param)
            self._send(Failed(stream, error.code, _sendable(error.message), param))

    def say_goodbye(self) -> None:
        self._send(Goodbye())

    # -- inside

    def _send(self, frame: Frame) -> None:
        encoded = encode_frame(frame, max_bytes=self.max_frame_bytes)
        self._seal_items()
        self._output.append(encoded)

    def _seal_items(self) -> None:
        if self._items or self._ended:
            frame = Items(self._items, self._ended)
            self._items, self._ended, self._items_bytes = [], [], 0
            self._output.append(encode_frame(frame, max_bytes=self.max_frame_bytes))

    def _mac(self, side: Side, own_nonce: bytes, peer_nonce: bytes) -> bytes:
        if self.secret is None:
            return b""
        return hmac.digest(self.secret.encode(), side.value + own_nonce + peer_nonce, "sha256")

    def _receive_hello(self, hello: Hello) -> None:
        if hello.version != WIRE_VERSION:
            raise HandshakeError(
                f"the peer speaks wire version {hello.version}, we speak {WIRE_VERSION}; "
                "install the same dynamo-sdk version in both environments"
            )
        if len(hello.nonce) != NONCE_BYTES or hello.nonce == self.nonce:
            raise HandshakeError("the peer sent a bad nonce")
        self._peer_nonce = hello.nonce
        self._send(Proof(self._mac(self.side, self.nonce, hello.nonce)))
        self.state = State.PROOF

    def _receive_proof(self, proof: Proof) -> Ready:
        peer = Side.SERVER if self.side is Side.CLIENT else Side.CLIENT
        if not hmac.compare_digest(proof.mac, self._mac(peer, self._peer_nonce, self.nonce)):
            raise HandshakeError("the peer does not know our shared secret; set the same one on both sides")
        self.state = State.OPEN
        return Ready()

    def _receive_client(self, frame: Frame) -> Event | None:
        if isinstance(frame, Items):
            return Received(frame.entries, frame.ended)
        if isinstance(frame, Failed):
            return StreamFailed(frame.stream, error_from_code(frame.code, frame.message, param=frame.param))
        if isinstance(frame, Goodbye):
            return Draining()
        raise ProtocolError(f"a server must not send {type(frame).__name__}")

    def _receive_server(self, frame: Frame) -> Event | None:
        if isinstance(frame, Open):
            if frame.stream < self._next_stream:
                raise ProtocolError(f"stream {frame.stream} was opened before")
            if frame.credit < 1:
                raise ProtocolError("a stream needs credit for at least one item")
            self._next_stream = frame.stream + 1
            self._credit[frame.stream] = frame.credit
            return Opened(frame.stream, frame.method, frame.payload, frame.deadline_s)
        if isinstance(frame, Cancel):
            return Cancelled(frame.stream) if self._credit.pop(frame.stream, None) is not None else None
        if isinstance(frame, Credit):
            if frame.stream not in self._credit:
                return None
            if frame.num_items < 1:
                raise ProtocolError("credit must be positive")
            self._credit[frame.stream] += frame.num_items
            return Credited(frame.stream)
        raise ProtocolError(f"a client must not send {type(frame).__name__}")


def _sendable(text: str) -> str:
    """Short enough, and in UTF-8 even where it quotes what is not: a client must learn that it failed."""
    return text[:MAX_MESSAGE_CHARS].encode(errors="backslashreplace").decode()
