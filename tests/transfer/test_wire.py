from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynamo_sdk.errors import FrameTooLarge, HandshakeError, ProtocolError
from dynamo_sdk.transfer import wire

MESSAGES_OF_FETCHER = (wire.Introduction(1, b"n", b"p"), wire.Claim(b"ticket", [0, 5, 70000]), wire.Done())
MESSAGES_OF_SERVER = (
    wire.Greeting(1, b"n", True),
    wire.Welcome(b"p"),
    wire.Claimed(),
    wire.Released(),
    wire.Refused("ticket_unknown", "why"),
)


@pytest.mark.parametrize("message", MESSAGES_OF_FETCHER)
def test_fetcher_messages_survive(message: wire.FromFetcher) -> None:
    data = wire.frame(message)
    assert wire.body_bytes(data[: wire.HEAD_BYTES]) == len(data) - wire.HEAD_BYTES
    assert wire.decode_from_fetcher(data[wire.HEAD_BYTES :]) == message


@pytest.mark.parametrize("message", MESSAGES_OF_SERVER)
def test_server_messages_survive(message: wire.FromServer) -> None:
    data = wire.frame(message)
    assert wire.decode_from_server(data[wire.HEAD_BYTES :]) == message
    with pytest.raises(ProtocolError):
        wire.decode_from_fetcher(data[wire.HEAD_BYTES :])


@given(st.binary(max_size=200))
@example(b"\x91\xa1\xff")  # a string that is not UTF-8
@example(b"\x93\xa7refused\xa1\xff\xa0")
def test_garbage_is_a_protocol_error(data: bytes) -> None:
    for decode in (wire.decode_from_fetcher, wire.decode_from_server):
        try:
            message = decode(data)
        except ProtocolError:
            continue
        assert type(message).__module__ == wire.__name__


def test_frames_are_bounded_on_both_ends() -> None:
    with pytest.raises(FrameTooLarge):
        wire.frame(wire.Claim(b"t", [1 << 40] * 200_000))
    with pytest.raises(FrameTooLarge):
        wire.body_bytes(struct.pack("<I", wire.MAX_FRAME_BYTES + 1))
    assert wire.body_bytes(struct.pack("<I", wire.MAX_FRAME_BYTES)) == wire.MAX_FRAME_BYTES


@pytest.mark.parametrize("secret", [None, b"shared"])
def test_both_sides_prove_the_secret(secret: bytes | None) -> None:
    greeting = wire.greet(secret)
    introduction = wire.introduce(greeting, secret)
    wire.check_welcome(greeting, introduction, wire.welcome(greeting, introduction, secret), secret)


def test_a_wrong_secret_is_refused_by_both_sides() -> None:
    greeting = wire.greet(b"right")
    introduction = wire.introduce(greeting, b"wrong")
    with pytest.raises(HandshakeError, match="differ"):
        wire.welcome(greeting, introduction, b"right")
    honest = wire.introduce(greeting, b"right")
    with pytest.raises(HandshakeError, match="does not know"):
        wire.check_welcome(greeting, honest, wire.Welcome(b""), b"right")
    with pytest.raises(HandshakeError, match="does not know"):
        # The fetcher's own proof, sent back: the two sides sign different words.
        wire.check_welcome(greeting, honest, wire.Welcome(honest.proof), b"right")


def test_one_side_without_a_secret_is_refused_before_anything_is_proven() -> None:
    with pytest.raises(HandshakeError, match="this process has no shared secret"):
        wire.introduce(wire.greet(b"secret"), None)
    with pytest.raises(HandshakeError, match="the block server has no shared secret"):
        wire.introduce(wire.greet(None), b"secret")


def test_a_proof_is_of_no_use_for_another_connection() -> None:
    seen = wire.introduce(wire.greet(b"secret"), b"secret")
    with pytest.raises(HandshakeError):
        wire.welcome(wire.greet(b"secret"), seen, b"secret")


def test_versions_must_be_equal() -> None:
    with pytest.raises(HandshakeError, match="version"):
        wire.introduce(wire.Greeting(wire.WIRE_VERSION + 1, b"n", False), None)
    with pytest.raises(HandshakeError, match="version"):
        wire.welcome(wire.greet(None), wire.Introduction(wire.WIRE_VERSION + 1, b"n"), None)
