"""Discovery in two forms: through a registry elsewhere, and inside one process.

``EmbeddedDiscovery`` talks to a ``RegistryServer`` (usually the launcher's). It survives the registry's
restart: leases are taken again and watchers go on, while readers keep the last fleet they saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from dynamo_sdk.errors import DynamoError, HandshakeError
from dynamo_sdk.interfaces import Discovery, Fleet, Lease
from dynamo_sdk.types import WorkerRecord

from .calls import call_streaming, call_unary
from .client import ClientConnection, connect
from .clock import Clock, SystemClock
from .network import Network, SocketNetwork
from .registry import REGISTRY_CODECS, RegistryService

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0


class _HeldRecord(Lease):
    """A record that a task keeps registered, whatever happens to the connection."""

    def __init__(self, discovery: EmbeddedDiscovery, record: WorkerRecord, ttl_s: float) -> None:
        self._discovery = discovery
        self._ttl_s = ttl_s
        self.record = record
        self._retry_s = FIRST_RETRY_S
        self._held: tuple[ClientConnection, int] | None = None  # where, and the lease's number there
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.get_running_loop().create_task(self._keep())

    async def update(self, record: WorkerRecord) -> None:
        self.record = record  # without a lease just now, the next one is taken for this record
        if self._held is not None:
            connection, number = self._held
            await self._discovery.call(connection, "update", number, record)

    async def revoke(self) -> None:
        held, self._held = self._held, None
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        if held is not None:
            connection, number = held
            with contextlib.suppress(DynamoError):
                await self._discovery.call(connection, "revoke", number)

    async def _keep(self) -> None:
        while True:
            try:
                await self._hold()
            except Exception as error:
                is_hopeless = isinstance(error, HandshakeError) or not isinstance(error, DynamoError)
                if not self.registered.done():
                    self.registered.set_exception(error)
                    return
                if is_hopeless:
                    logger.exception("%s is announced no more", self.record.worker_id)
                    return
                logger.warning(
                    "the registry is out of reach, trying again in %.1f s: %s", self._retry_s, error
                )
            await self._discovery.clock.sleep(self._retry_s)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    async def _hold(self) -> None:
        connection = await self._discovery.connection()
        codec = REGISTRY_CODECS["hold"]
        sent = self.record
        payload = codec.encode_arguments((sent, self._ttl_s), {})
        renewals: asyncio.Task[None] | None = None
        try:
            async with aclosing(call_streaming(connection, codec, payload, timeout_s=None)) as stream:
                async for number in stream:
                    self._held, self._retry_s = (connection, number), FIRST_RETRY_S
                    if self.record is not sent:
                        await self.update(self.record)
                    if not self.registered.done():
                        self.registered.set_result(None)
                    renewals = asyncio.get_running_loop().create_task(self._renew(connection, number))
        finally:
            self._held = None
            if renewals is not None:
                renewals.cancel()

    async def _renew(self, connection: ClientConnection, number: int) -> None:
        while True:
            await self._discovery.clock.sleep(self._ttl_s / 3)
            try:
                await self._discovery.call(connection, "renew", number)
            except DynamoError:
                # Whatever the reason, a fresh connection and a fresh lease put it right.
                await connection.aclose()
                return


class EmbeddedDiscovery(Discovery):
    """Discovery through the registry at ``address``."""

    def __init__(
        self,
        address: str,
        *,
        secret: str | None = None,
        network: Network | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._address = address
        self._secret = secret
        self._network = network or SocketNetwork()
        self.clock = clock or SystemClock()
        self._connecting: asyncio.Task[ClientConnection] | None = None
        self._leases: list[_HeldRecord] = []
        self._is_closed = False
        self._lost_since_s: float | None = None
        self._lost = asyncio.Event()

    async def register(self, record: WorkerRecord, *, ttl_s: float = 10.0) -> Lease:
        lease = _HeldRecord(self, record, ttl_s)
        self._leases.append(lease)
        try:
            await asyncio.shield(lease.registered)
        except BaseException:
            await lease.revoke()
            raise
        return lease

    async def watch(self) -> AsyncGenerator[Fleet, None]:
        codec = REGISTRY_CODECS["watch"]
        retry_s = FIRST_RETRY_S
        is_first = True
        while not self._is_closed:
            try:
                connection = await self.connection()
                stream = call_streaming(connection, codec, codec.encode_arguments((), {}), timeout_s=None)
                async with aclosing(stream):
                    async for records in stream:
                        is_first, retry_s, self._lost_since_s = False, FIRST_RETRY_S, None
                        yield {record.worker_id: record for record in records}
            except DynamoError as error:
                self._note_lost()
                if is_first or isinstance(error, HandshakeError):
                    raise
            self._note_lost()
            await self.clock.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    def _note_lost(self) -> None:
        if self._lost_since_s is None:
            self._lost_since_s = self.clock.now_s()
            self._lost.set()

    async def wait_lost(self, for_s: float) -> None:
        """Return once a ``watch``, which has to be under way, has not reached the registry ``for_s`` long."""
        while True:
            if self._lost_since_s is None:
                self._lost.clear()
                await self._lost.wait()
            else:
                left_s = self._lost_since_s + for_s - self.clock.now_s()
                if left_s <= 0:
                    return
                await self.clock.sleep(left_s)

    async def close(self) -> None:
        self._is_closed = True
        for lease in self._leases:
            await lease.revoke()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled() and connecting.exception() is None:
                await connecting.result().aclose()

    async def connection(self) -> ClientConnection:
        """The one connection that everything here shares, made anew when it was lost."""
        current = self._connecting
        is_lost = (
            current is not None
            and current.done()
            and (current.cancelled() or current.exception() is not None or not current.result().is_usable)
        )
        if current is None or is_lost:
            current = self._connecting = asyncio.get_running_loop().create_task(
                connect(self._network, self._address, secret=self._secret, clock=self.clock)
            )
        return await asyncio.shield(current)

    async def call(self, connection: ClientConnection, method: str, *args: object) -> None:
        codec = REGISTRY_CODECS[method]
        await call_unary(connection, codec, codec.encode_arguments(args, {}), timeout_s=CALL_TIMEOUT_S)


class _MemoryLease(Lease):
    def __init__(self, registry: RegistryService, record: WorkerRecord) -> None:
        self._registry = registry
        self._number = registry.grant(record, ttl_s=None)

    async def update(self, record: WorkerRecord) -> None:
        await self._registry.update(self._number, record)

    async def revoke(self) -> None:
        await self._registry.revoke(self._number)


class MemoryDiscovery(Discovery):
    """The same registry without a wire. Replicas of one process share one ``RegistryService``."""

    def __init__(self, registry: RegistryService | None = None, *, clock: Clock | None = None) -> None:
        self.registry = registry or RegistryService(clock)
        self._leases: list[_MemoryLease] = []

    async def register(self, record: WorkerRecord, *, ttl_s: float = 10.0) -> Lease:
        lease = _MemoryLease(self.registry, record)
        self._leases.append(lease)
        return lease

    async def watch(self) -> AsyncGenerator[Fleet, None]:
        async for records in self.registry.watch():
            yield {record.worker_id: record for record in records}

    async def close(self) -> None:
        for lease in self._leases:
            await lease.revoke()
