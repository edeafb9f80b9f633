"""What a fetcher and a block server say to each other.

::

    fetcher                                  block server
                          <── Greeting       version, a nonce, whether it wants a secret
    Introduction ──>                         version, its own nonce, proof of the secret
                          <── Welcome        the server's own proof
    Claim ──>                                a ticket, and which of its blocks to send
                          <── Claimed        the ticket is being fetched
                          <── (raw bytes)    the blocks, in the order asked for
    Done ──>                                 all is copied; which checksums to tell
                          <── Released       it was valid until now; any number of claims may follow

A fetcher that reads the blocks itself (mapped, or through NIXL) claims without asking for any, and copies
while its claim travels: what it reads from a live ticket is right, and ``Claimed`` and ``Released`` say that
the ticket was live all along.

Over further connections a fetcher may ``Join`` what it has claimed and is sent some of the blocks there.

``Refused`` may stand in for each of the server's answers. A frame is a length (four bytes, little endian)
and a MessagePack array. Closing the connection gives up whatever is being fetched.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct

import msgspec

from dynamo_sdk.errors import FrameTooLarge, HandshakeError, ProtocolError

WIRE_VERSION = 2
HEAD_BYTES = 4
MAX_FRAME_BYTES = 1 << 20
"""Enough for a claim of 200 000 blocks; block bytes do not travel in frames."""

_NONCE_BYTES = 32
_head = struct.Struct("<I")


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag="greeting"):
    version: int
    nonce: bytes
    wants_secret: bool


class Introduction(msgspec.Struct, frozen=True, array_like=True, tag="introduction"):
    version: int
    nonce: bytes
    proof: bytes = b""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    proof: bytes = b""


class Claim(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """``indexes`` into the ticket's ``block_ids``; empty when the fetcher reads by itself, or needs none."""

    ticket_id: bytes
    indexes: list[int]


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """Send other blocks of a ticket that is being fetched, over this connection. ``Claimed`` and the blocks
    are the answer; the connection that claimed the ticket ends it."""

    ticket_id: bytes
    indexes: list[int]


class Claimed(msgspec.Struct, frozen=True, array_like=True, tag="claimed"):
    pass


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """``verified``: indexes of blocks whose checksums the fetcher wants to see before it believes them."""

    verified: list[int] = []


class Released(msgspec.Struct, frozen=True, array_like=True, tag="released"):
    """``checksums``: 16 bytes for each index of ``Done.verified``, taken while the ticket was live."""

    checksums: list[bytes] = []


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """``code`` of an exception class of ``errors``."""

    code: str
    message: str


FromFetcher = Introduction | Claim | Join | Done
FromServer = Greeting | Welcome | Claimed | Released | Refused

_encoder = msgspec.msgpack.Encoder()
_from_fetcher: msgspec.msgpack.Decoder[FromFetcher] = msgspec.msgpack.Decoder(FromFetcher)
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)


def frame(message: FromFetcher | FromServer) -> bytes:
    """Raises ``FrameTooLarge``."""
    return frame_of(_encoder.encode(message))


def frame_of(body: bytes) -> bytes:
    """For the messages of other protocols behind the same handshake. Raises ``FrameTooLarge``."""
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"a frame of {len(body)} bytes, the limit is {MAX_FRAME_BYTES}")
    return _head.pack(len(body)) + body


def body_bytes(head: bytes | bytearray | memoryview) -> int:
    """How many bytes follow a head. Raises ``FrameTooLarge``."""
    (length,) = _head.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"the peer announced a frame of {length} bytes, the limit is {MAX_FRAME_BYTES}")
    return int(length)


def decode_from_fetcher(body: bytes | bytearray | memoryview) -> FromFetcher:
    """Raises ``ProtocolError``."""
    try:
        return _from_fetcher.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a fetcher sent no valid message: {error}") from error


def decode_from_server(body: bytes | bytearray | memoryview) -> FromServer:
    """Raises ``ProtocolError``."""
    try:
        return _from_server.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a block server sent no valid message: {error}") from error


def greet(secret: bytes | None) -> Greeting:
    return Greeting(WIRE_VERSION, secrets.token_bytes(_NONCE_BYTES), secret is not None)


def introduce(greeting: Greeting, secret: bytes | None) -> Introduction:
    """The fetcher's answer. Raises ``HandshakeError`` when the two can never agree."""
    if greeting.version != WIRE_VERSION:
        raise HandshakeError(
            f"the block server speaks transfer version {greeting.version}, this process {WIRE_VERSION}; "
            "install the same dynamo-sdk on both sides"
        )
    if greeting.wants_secret != (secret is not None):
        lacking = "this process" if greeting.wants_secret else "the block server"
        raise HandshakeError(f"{lacking} has no shared secret, the other side has one; give both the same")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return Introduction(WIRE_VERSION, nonce, _proof(secret, b"fetcher", greeting.nonce, nonce))


def welcome(greeting: Greeting, introduction: Introduction, secret: bytes | None) -> Welcome:
    """The server's verdict. Raises ``HandshakeError``."""
    if introduction.version != WIRE_VERSION:
        raise HandshakeError(f"transfer version {introduction.version} met {WIRE_VERSION}")
    expected = _proof(secret, b"fetcher", greeting.nonce, introduction.nonce)
    if not hmac.compare_digest(expected, introduction.proof):
        raise HandshakeError("the shared secrets differ")
    return Welcome(_proof(secret, b"server", greeting.nonce, introduction.nonce))


def check_welcome(
    greeting: Greeting, introduction: Introduction, answer: Welcome, secret: bytes | None
) -> None:
    """The server knows the secret too, or ``HandshakeError``: nobody else may feed us blocks."""
    expected = _proof(secret, b"server", greeting.nonce, introduction.nonce)
    if not hmac.compare_digest(expected, answer.proof):
        raise HandshakeError("the block server does not know the shared secret")


def _proof(secret: bytes | None, side: bytes, server_nonce: bytes, fetcher_nonce: bytes) -> bytes:
    if secret is None:
        return b""
    return hmac.new(
        secret, b"dynamo-sdk transfer " + side + server_nonce + fetcher_nonce, hashlib.sha256
    ).digest()
