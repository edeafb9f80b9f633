"""A network inside one process, whose links can delay, drop, reorder and break.

The twin of ``SocketNetwork`` for notebooks, tests and simulation. Without faults a write arrives in the
next turn of the event loop. ``faults`` decides about each write on its own, with the clock it is given:
a ``Delivery`` may come late, may overtake earlier ones (``may_overtake``: only for protocols that number
their messages, such as event feeds), or never; ``CUT`` breaks the link as a dead peer does.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from dynamo_sdk.errors import ConfigError, ConnectionLost

from .clock import Clock, SystemClock
from .network import Channel, Listener, Network


@dataclass(frozen=True, slots=True)
class Delivery:
    """What becomes of one write."""

    delay_s: float = 0.0
    may_overtake: bool = False


class Fault(Enum):
    DROP = "drop"
    CUT = "cut"


Fate = Delivery | Fault
Faults = Callable[[str, bytes], Fate]
"""Called as ``faults(address of the listener, data)`` for each write in either direction."""


def no_faults(_address: str, _data: bytes) -> Fate:
    return Delivery()


class _MemoryChannel(Channel):
    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._peer: _MemoryChannel | None = None
        self._arrives_s = 0.0
        self._is_closed = False

    def join(self, peer: _MemoryChannel) -> None:
        self._peer, peer._peer = peer, self

    def write(self, data: bytes) -> None:
        if self._is_closed:
            return
        fate = self._network.faults(self._address, data)
        if fate is Fault.CUT:
            self.abort()
        elif isinstance(fate, Delivery):
            clock = self._network.clock
            arrives_s = clock.now_s() + fate.delay_s
            if not fate.may_overtake:
                arrives_s = self._arrives_s = max(arrives_s, self._arrives_s)
            peer = self._peer
            assert peer is not None
            self._schedule(arrives_s, lambda: peer._arrive(data))

    def _schedule(self, when_s: float, callback: Callable[[], None]) -> None:
        # Undelayed traffic must not wait for a manual clock to move.
        if when_s <= self._network.clock.now_s():
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._network.clock.call_at(when_s, callback)

    def _arrive(self, data: bytes) -> None:
        if not self._is_closed:
            self.on_data(data)

    def _end(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._network.forget(self)
            self.on_close()

    async def wait_writable(self) -> None:
        return

    def is_writable(self) -> bool:
        return True

    def close(self) -> None:
        if self._is_closed:
            return
        peer = self._peer
        assert peer is not None
        self._schedule(max(self._arrives_s, self._network.clock.now_s()), peer._end)
        asyncio.get_running_loop().call_soon(self._end)

    def abort(self) -> None:
        self.close()


class _MemoryListener(Listener):
    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self.address = address
        self._network = network

    async def close(self) -> None:
        self._network.listeners.pop(self.address, None)


class MemoryNetwork(Network):
    """Addresses are names; nothing leaves the process. One event loop only."""

    def __init__(self, *, clock: Clock | None = None, faults: Faults = no_faults) -> None:
        self.clock = clock or SystemClock()
        self.faults = faults
        self.listeners: dict[str, Callable[[Channel], None]] = {}
        self._channels: set[_MemoryChannel] = set()
        self._ports = itertools.count(1)

    async def listen(self, address: str, accept: Callable[[Channel], None]) -> Listener:
        if address.endswith(":0"):
            address = f"{address[:-1]}{next(self._ports)}"
        if address in self.listeners:
            raise ConfigError(f"cannot listen on {address}: it is taken")
        self.listeners[address] = accept
        return _MemoryListener(self, address)

    async def connect(
        self, address: str, on_data: Callable[[bytes], None], on_close: Callable[[], None]
    ) -> Channel:
        await asyncio.sleep(0)
        accept = self.listeners.get(address)
        if accept is None:
            raise ConnectionLost(f"nobody answers at {address}")
        ours, theirs = _MemoryChannel(self, address), _MemoryChannel(self, address)
        ours.on_data, ours.on_close = on_data, on_close
        ours.join(theirs)
        self._channels |= {ours, theirs}
        accept(theirs)
        return ours

    def cut(self, address: str) -> None:
        """Break every link to ``address``, as if the process behind it had died; it no longer listens."""
        self.listeners.pop(address, None)
        for channel in [c for c in self._channels if c._address == address]:
            channel.abort()

    def forget(self, channel: _MemoryChannel) -> None:
        self._channels.discard(channel)
