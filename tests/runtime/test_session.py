"""Two sessions back to back, without a socket."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo_sdk.errors import EngineFailed, FrameTooLarge, HandshakeError, ProtocolError
from dynamo_sdk.runtime.session import (
    Cancelled,
    Credited,
    Draining,
    Event,
    Opened,
    Ready,
    Received,
    Session,
    Side,
    State,
    StreamFailed,
)
from dynamo_sdk.runtime.wire import FrameSplitter, Hello, encode_frame


class Pipe:
    """Moves what one session wrote to the other."""

    def __init__(self, source: Session, target: Session) -> None:
        self.source, self.target = source, target
        self.splitter = FrameSplitter()

    def move(self) -> list[Event]:
        if not self.source.has_output:
            return []
        events = [self.target.receive(body) for body in self.splitter.feed(self.source.take_output())]
        return [event for event in events if event is not None]


def pair(client_secret: str | None = None, server_secret: str | None = None) -> tuple[Pipe, Pipe]:
    client = Session(Side.CLIENT, b"c" * 16, client_secret)
    server = Session(Side.SERVER, b"s" * 16, server_secret)
    return Pipe(client, server), Pipe(server, client)


def shake_hands(up: Pipe, down: Pipe) -> None:
    assert up.move() == []
    assert down.move() == [Ready()]
    assert up.move() == [Ready()]


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


@pytest.mark.parametrize("secret", [None, "s3cret"])
def test_equal_secrets_open_the_session(secret: str | None) -> None:
    up, down = pair(secret, secret)
    shake_hands(up, down)
    assert up.source.state is State.OPEN
    assert up.target.state is State.OPEN


@pytest.mark.parametrize(("ours", "theirs"), [("a", "b"), ("a", None), (None, "a")])
def test_unequal_secrets_do_not(ours: str | None, theirs: str | None) -> None:
    up, down = pair(ours, theirs)
    with pytest.raises(HandshakeError, match="shared secret"):
        shake_hands(up, down)


def test_another_wire_version_is_named() -> None:
    server = Session(Side.SERVER, b"s" * 16)
    with pytest.raises(HandshakeError, match="wire version 999"):
        server.receive(encode_frame(Hello(999, b"c" * 16))[4:])


def test_a_peer_that_mirrors_us_is_refused() -> None:
    """With our own nonce sent back, our own proof would be the right one."""
    client = Session(Side.CLIENT, b"c" * 16, "secret")
    with pytest.raises(HandshakeError, match="nonce"):
        client.receive(client.take_output()[4:])


def test_calls_before_the_handshake_are_refused() -> None:
    up, _ = pair()
    up.move()
    up.source.state = State.OPEN
    up.source.open("x", raw(()), credit=1, deadline_s=None)
    with pytest.raises(ProtocolError, match="in state PROOF"):
        up.move()


def test_items_of_one_tick_share_a_frame() -> None:
    up, down = pair()
    shake_hands(up, down)
    streams = [up.source.open("gen", raw(()), credit=4, deadline_s=None) for _ in range(64)]
    up.move()
    for stream in streams:
        up.target.send_item(stream, msgspec.msgpack.encode(stream))
    up.target.end(streams[0])
    [event] = down.move()
    assert isinstance(event, Received)
    assert [msgspec.msgpack.decode(payload) for _, payload in event.entries] == streams
    assert event.ended == [streams[0]]


def test_items_are_split_where_the_frame_limit_is() -> None:
    server = Session(Side.SERVER, b"s" * 16, max_frame_bytes=1000)
    client = Session(Side.CLIENT, b"c" * 16, max_frame_bytes=1000)
    up, down = Pipe(client, server), Pipe(server, client)
    shake_hands(up, down)
    stream = client.open("gen", raw(()), credit=100, deadline_s=None)
    up.move()
    for _ in range(50):
        server.send_item(stream, msgspec.msgpack.encode("x" * 90))
    events = down.move()
    assert len(events) > 4
    assert sum(len(event.entries) for event in events if isinstance(event, Received)) == 50
    with pytest.raises(FrameTooLarge):
        server.send_item(stream, b"x" * 990)


def test_goodbye_is_announced() -> None:
    up, down = pair()
    shake_hands(up, down)
    up.target.say_goodbye()
    assert down.move() == [Draining()]


class SessionMachine(RuleBasedStateMachine):
    """Random calls in both directions, delivered late, against what each side believes."""

    @initialize()
    def connect(self) -> None:
        self.up, self.down = pair("k", "k")
        shake_hands(self.up, self.down)
        self.client, self.server = self.up.source, self.up.target
        self.sent: defaultdict[int, list[int]] = defaultdict(list)
        self.got: defaultdict[int, list[int]] = defaultdict(list)
        self.client_open: set[int] = set()
        self.ended: set[int] = set()
        self.finished: set[int] = set()
        self.granted: defaultdict[int, int] = defaultdict(int)

    @rule(credit=st.integers(1, 3))
    def open(self, credit: int) -> None:
        stream = self.client.open("m", raw([1]), credit=credit, deadline_s=None)
        self.client_open.add(stream)
        self.granted[stream] = credit

    def pick(self, data: st.DataObject, streams: set[int]) -> int:
        return data.draw(st.sampled_from(sorted(streams)))

    @precondition(lambda self: self.client_open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = self.pick(data, self.client_open)
        self.client_open.discard(stream)
        self.client.cancel(stream)

    @precondition(lambda self: self.client_open)
    @rule(data=st.data(), num_items=st.integers(1, 3))
    def grant(self, data: st.DataObject, num_items: int) -> None:
        stream = self.pick(data, self.client_open)
        self.client.grant(stream, num_items)
        self.granted[stream] += num_items

    @rule(data=st.data(), value=st.integers())
    def send(self, data: st.DataObject, value: int) -> None:
        ready = {stream for stream in self.granted if self.server.credit(stream) > 0}
        if ready:
            stream = self.pick(data, ready)
            value %= 2**60
            self.server.send_item(stream, msgspec.msgpack.encode(value))
            self.sent[stream].append(value)

    @rule(data=st.data(), is_failure=st.booleans())
    def finish(self, data: st.DataObject, is_failure: bool) -> None:
        running = {stream for stream in self.granted if self.server.is_open(stream)}
        if running:
            stream = self.pick(data, running)
            self.finished.add(stream)
            if is_failure:
                self.server.fail(stream, EngineFailed("x"))
            else:
                self.server.end(stream)

    @rule()
    def deliver_to_server(self) -> None:
        for event in self.up.move():
            assert isinstance(event, Opened | Cancelled | Credited)

    @rule()
    def deliver_to_client(self) -> None:
        for event in self.down.move():
            if isinstance(event, Received):
                for stream, payload in event.entries:
                    assert stream not in self.ended
                    self.got[stream].append(msgspec.msgpack.decode(payload))
                self.ended |= set(event.ended)
            else:
                assert isinstance(event, StreamFailed)
                self.ended.add(event.stream)
        assert self.ended <= self.finished
        assert self.got == self.sent

    @invariant()
    def nobody_sends_more_than_granted(self) -> None:
        for stream, sent in self.sent.items():
            assert len(sent) <= self.granted[stream]


SessionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestSessions = SessionMachine.TestCase
