from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.errors import FrameTooLarge, ProtocolError
from dynamo_sdk.runtime.wire import (
    LENGTH_BYTES,
    Cancel,
    Credit,
    Failed,
    Frame,
    FrameSplitter,
    Goodbye,
    Hello,
    Items,
    Open,
    Proof,
    decode_frame,
    encode_frame,
)

RAW = msgspec.Raw(msgspec.msgpack.encode({"any": ["thing", 1]}))
FRAMES: list[Frame] = [
    Hello(1, b"n" * 16),
    Proof(b"mac"),
    Open(1, "generate", RAW, 8, 2.5),
    Items([(1, RAW), (70000, RAW)], [3]),
    Failed(1, "engine_failed", "why", "prompt"),
    Cancel(2),
    Credit(2, 32),
    Goodbye(),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_frames_come_back_as_they_were(frame: Frame) -> None:
    back = decode_frame(encode_frame(frame)[LENGTH_BYTES:])
    assert type(back) is type(frame)
    assert msgspec.msgpack.encode(back) == msgspec.msgpack.encode(frame)


@given(cuts=st.lists(st.integers(1, 40), min_size=1))
def test_frames_survive_any_cutting_of_the_byte_stream(cuts: list[int]) -> None:
    stream = b"".join(encode_frame(frame) for frame in FRAMES)
    splitter, bodies, position, turn = FrameSplitter(), [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        bodies += list(splitter.feed(stream[position : position + size]))
        position, turn = position + size, turn + 1
    assert [type(decode_frame(body)) for body in bodies] == [type(frame) for frame in FRAMES]


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode_frame(garbage), Frame)


def test_a_frame_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(FrameTooLarge, match="over the limit of 10"):
        encode_frame(Hello(1, b"n" * 16), max_bytes=10)
    splitter = FrameSplitter(max_bytes=10)
    with pytest.raises(FrameTooLarge):
        list(splitter.feed(encode_frame(Hello(1, b"n" * 16))))
