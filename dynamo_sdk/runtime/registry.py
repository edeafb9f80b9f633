"""The embedded registry: who is there, in the launcher's memory, reached over the request plane.

``RegistryState`` is pure bookkeeping of leases. ``RegistryService`` is an ordinary service with
endpoints around it: ``hold`` keeps a record for as long as its stream is open *and* it is renewed, so a
process that dies is gone at once and a host that falls silent is gone after the lease.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from dynamo_sdk.errors import NotFound
from dynamo_sdk.graph.endpoints import endpoints_of
from dynamo_sdk.graph.markers import endpoint
from dynamo_sdk.interfaces import Fleet
from dynamo_sdk.types import WorkerRecord

from .calls import codecs_of, serve_endpoints
from .clock import Clock, SystemClock, TimerHandle
from .network import Network, SocketNetwork
from .server import Server


@dataclass(slots=True)
class _Lease:
    record: WorkerRecord
    ttl_s: float | None
    expires_s: float | None


class RegistryState:
    """Records under leases. All times come from the caller; nothing expires unless ``expire`` is called."""

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}
        self._numbers = itertools.count(1)
        self.version = 0

    def grant(self, record: WorkerRecord, ttl_s: float | None, now_s: float) -> int:
        """The number of a new lease; ``ttl_s=None`` lasts until it is revoked."""
        number = next(self._numbers)
        self._leases[number] = _Lease(record, ttl_s, None if ttl_s is None else now_s + ttl_s)
        self.version += 1
        return number

    def renew(self, number: int, now_s: float) -> None:
        """Raises ``NotFound`` when the lease is over."""
        lease = self._lease(number)
        if lease.ttl_s is not None:
            lease.expires_s = now_s + lease.ttl_s

    def update(self, number: int, record: WorkerRecord) -> None:
        """Raises ``NotFound`` when the lease is over."""
        lease = self._lease(number)
        if lease.record != record:
            lease.record = record
            self.version += 1

    def revoke(self, number: int) -> None:
        if self._leases.pop(number, None) is not None:
            self.version += 1

    def expire(self, now_s: float) -> float | None:
        """Drop what is over; returns when the next lease ends, or None."""
        ends_s = {n: lease.expires_s for n, lease in self._leases.items() if lease.expires_s is not None}
        for number, end_s in ends_s.items():
            if end_s <= now_s:
                self.revoke(number)
        return min((end_s for end_s in ends_s.values() if end_s > now_s), default=None)

    def fleet(self) -> Fleet:
        return {lease.record.worker_id: lease.record for lease in self._leases.values()}

    def _lease(self, number: int) -> _Lease:
        try:
            return self._leases[number]
        except KeyError:
            raise NotFound(f"lease {number} is over; register again") from None


class RegistryService:
    """The registry's endpoints, and the timer that ends leases."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._state = RegistryState()
        self._changed: asyncio.Event = asyncio.Event()
        self._timer: TimerHandle | None = None

    @endpoint
    async def hold(self, record: WorkerRecord, ttl_s: float) -> AsyncIterator[int]:
        """Yield the lease's number, then keep the stream open: its end is the end of the lease."""
        number = self.grant(record, ttl_s)
        try:
            yield number
            await asyncio.get_running_loop().create_future()
        finally:
            await self.revoke(number)

    @endpoint
    async def renew(self, lease: int) -> None:
        self._state.renew(lease, self._clock.now_s())

    @endpoint
    async def update(self, lease: int, record: WorkerRecord) -> None:
        self._state.update(lease, record)
        self._after_change()

    @endpoint
    async def revoke(self, lease: int) -> None:
        self._state.revoke(lease)
        self._after_change()

    @endpoint
    async def watch(self) -> AsyncIterator[list[WorkerRecord]]:
        """Yield all records at once and after each change; a slow reader skips to the latest."""
        seen = -1
        while True:
            if seen != self._state.version:
                seen = self._state.version
                yield list(self._state.fleet().values())
            else:
                await self._changed.wait()

    def grant(self, record: WorkerRecord, ttl_s: float | None) -> int:
        number = self._state.grant(record, ttl_s, self._clock.now_s())
        self._after_change()
        return number

    def fleet(self) -> Fleet:
        return self._state.fleet()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _after_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._expire()

    def _expire(self) -> None:
        version = self._state.version
        next_s = self._state.expire(self._clock.now_s())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if next_s is None else self._clock.call_at(next_s, self._expire)
        if version != self._state.version:
            self._changed.set()
            self._changed = asyncio.Event()


REGISTRY_CODECS = codecs_of(endpoints_of(RegistryService), "registry")


class RegistryServer:
    """Hosts a registry at one or more addresses. ``async with``; ``addresses`` are then the real ones."""

    def __init__(
        self,
        *addresses: str,
        secret: str | None = None,
        network: Network | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._wanted = addresses
        self.service = RegistryService(clock)
        self._servers = [
            Server(
                network or SocketNetwork(),
                serve_endpoints(self.service, REGISTRY_CODECS),
                secret=secret,
                clock=clock,
            )
            for _ in addresses
        ]

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(server.address for server in self._servers)

    @property
    def address(self) -> str:
        return self._servers[0].address

    async def __aenter__(self) -> Self:
        for server, address in zip(self._servers, self._wanted, strict=True):
            await server.start(address)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            await server.close()
        self.service.close()
