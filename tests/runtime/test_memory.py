from __future__ import annotations

import asyncio

import pytest

from dynamo_sdk.errors import ConfigError, ConnectionLost
from dynamo_sdk.runtime.clock import ManualClock, settle
from dynamo_sdk.runtime.memory import Delivery, Fate, Fault, MemoryNetwork
from dynamo_sdk.runtime.network import Channel

pytestmark = pytest.mark.anyio


class End:
    """What arrived at one end of a channel."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.num_closed = 0
        self.channel: Channel | None = None

    def accept(self, channel: Channel) -> None:
        self.channel = channel
        channel.on_data, channel.on_close = self.received.append, self.close

    def close(self) -> None:
        self.num_closed += 1


async def joined(network: MemoryNetwork) -> tuple[Channel, End, End]:
    here, there = End(), End()
    await network.listen("memory:x", there.accept)
    channel = await network.connect("memory:x", here.received.append, here.close)
    return channel, here, there


async def test_undelayed_writes_arrive_without_time_passing() -> None:
    channel, here, there = await joined(MemoryNetwork(clock=ManualClock()))
    channel.write(b"a")
    channel.write(b"b")
    assert there.received == []
    await settle()
    assert there.received == [b"a", b"b"]
    assert there.channel is not None
    there.channel.write(b"c")
    await settle()
    assert here.received == [b"c"]


async def test_delays_keep_the_order_unless_they_may_overtake() -> None:
    clock = ManualClock()
    fates: dict[bytes, Fate] = {
        b"slow": Delivery(delay_s=5.0),
        b"fast": Delivery(delay_s=1.0),
        b"racer": Delivery(delay_s=2.0, may_overtake=True),
        b"lost": Fault.DROP,
    }
    channel, _, there = await joined(MemoryNetwork(clock=clock, faults=lambda _a, data: fates[data]))
    for data in fates:
        channel.write(data)
    await clock.advance(2.0)
    assert there.received == [b"racer"]
    await clock.advance(3.0)
    assert there.received == [b"racer", b"slow", b"fast"]


async def test_a_cut_ends_both_sides_once() -> None:
    def faults(_address: str, data: bytes) -> Fate:
        return Fault.CUT if data == b"boom" else Delivery()

    channel, here, there = await joined(MemoryNetwork(faults=faults))
    channel.write(b"before")
    channel.write(b"boom")
    channel.write(b"after")
    channel.close()
    await settle()
    assert there.received == [b"before"]
    assert (here.num_closed, there.num_closed) == (1, 1)


async def test_a_dead_address_answers_nobody() -> None:
    network = MemoryNetwork()
    _, here, there = await joined(network)
    network.cut("memory:x")
    await settle()
    assert (here.num_closed, there.num_closed) == (1, 1)
    with pytest.raises(ConnectionLost, match="nobody answers at memory:x"):
        await network.connect("memory:x", here.received.append, here.close)


async def test_addresses_are_taken_once_and_ports_are_given_out() -> None:
    network, end = MemoryNetwork(), End()
    first = await network.listen("tcp:h:0", end.accept)
    second = await network.listen("tcp:h:0", end.accept)
    assert first.address != second.address
    with pytest.raises(ConfigError, match="it is taken"):
        await network.listen(first.address, end.accept)
    await first.close()
    await network.listen(first.address, end.accept)
    await asyncio.sleep(0)
