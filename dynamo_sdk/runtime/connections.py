"""The connections to the replicas of one service: made when first needed, closed when a replica is gone."""

from __future__ import annotations

import asyncio
import itertools

from dynamo_sdk.errors import ConnectionLost, DeadlineExceeded, HandshakeError, Unavailable, WireError
from dynamo_sdk.interfaces import Fleet
from dynamo_sdk.types import WorkerId, WorkerRecord

from .client import ClientConnection, connect
from .clock import Clock
from .fleet import FleetView
from .network import Network


class Connections:
    """One per replica, shared by all calls. Deadlines are moments of ``clock``; None = no limit."""

    def __init__(
        self, service: str, fleet: FleetView, network: Network, clock: Clock, secret: str | None
    ) -> None:
        self._service = service
        self._fleet = fleet
        self._network = network
        self._clock = clock
        self._secret = secret
        self._connecting: dict[WorkerId, asyncio.Task[ClientConnection]] = {}
        self._turn = itertools.count()
        self._unsubscribe = fleet.subscribe(self._let_go)

    async def to(self, worker_id: WorkerId, deadline_s: float | None) -> ClientConnection:
        """The connection to this replica. Raises ``ConnectionLost`` when it is gone, ``HandshakeError``,
        ``DeadlineExceeded``. A caller that gives up does not stop others from waiting."""
        current = self._connecting.get(worker_id)
        if current is None or _is_lost(current):
            record = self._fleet.workers.get(worker_id)
            if record is None:
                raise ConnectionLost(f"{self._service}: worker {worker_id} is gone")
            current = self._connecting[worker_id] = asyncio.get_running_loop().create_task(
                connect(self._network, record.address, secret=self._secret, clock=self._clock)
            )
            current.add_done_callback(_is_lost)  # looks at its error, should nobody be left who waits
        if not current.done():
            await self._clock.wait(current, deadline_s)
            if not current.done():
                raise DeadlineExceeded(f"{self._service}: {worker_id} did not answer in time")
        if current.cancelled():
            raise ConnectionLost(f"{self._service}: the connection to {worker_id} was given up")
        return current.result()

    def ready(self, worker_id: WorkerId) -> ClientConnection | None:
        """The connection to this replica, if it is there already."""
        current = self._connecting.get(worker_id)
        return current.result() if current is not None and current.done() and not _is_lost(current) else None

    async def to_any(self, deadline_s: float | None) -> ClientConnection:
        """A connection to the replica whose turn it is. Those that are ready come first, those that drain
        or have not started last. Raises ``Unavailable`` when none answers."""
        replicas = sorted(self._fleet.of_service(self._service), key=lambda record: record.worker_id)
        turn = next(self._turn) % max(1, len(replicas))
        in_turn = replicas[turn:] + replicas[:turn]
        refusals: list[str] = []
        for record in sorted(in_turn, key=self._is_second_choice):
            try:
                return await self.to(record.worker_id, deadline_s)
            except (HandshakeError, DeadlineExceeded):
                raise
            except WireError as error:
                refusals.append(str(error))
        why = "; ".join(refusals) or "none is running"
        raise Unavailable(f"no replica of {self._service} answers: {why}")

    async def close(self) -> None:
        self._unsubscribe()
        tasks, self._connecting = list(self._connecting.values()), {}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not _is_lost(task):
                await task.result().aclose()

    def _is_second_choice(self, record: WorkerRecord) -> bool:
        task = self._connecting.get(record.worker_id)
        is_draining = task is not None and task.done() and not _is_lost(task) and task.result().is_draining
        return is_draining or not record.is_ready

    def _let_go(self, fleet: Fleet) -> None:
        """A record that vanished says the worker is dead or leaving; what still runs on it may end."""
        for worker_id in [w for w in self._connecting if w not in fleet]:
            task = self._connecting.pop(worker_id)
            if not task.done():
                task.cancel()
            elif not _is_lost(task):
                task.result().close_when_idle()


def _is_lost(task: asyncio.Task[ClientConnection]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None or not task.result().is_usable)
