"""What a running service may know and do: the context it gets, the hooks it may implement.

A plain class needs nothing of this. It may define ``async def on_start(self)`` and ``async def
on_stop(self)``; the ready-made services (worker, frontend) implement ``ManagedService`` instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import anyio

from dynamo_sdk.plugins.registry import Registry
from dynamo_sdk.types import WorkerRecord
from dynamo_sdk.types.plan import DeploymentPlan, ServicePlan

from .announcement import Announcement
from .clock import Clock
from .edges import ServiceClient
from .fleet import FleetView


@dataclass(slots=True, kw_only=True)
class ServiceContext:
    """One replica's surroundings.

    ``record``: what is known of it before it starts; ``announcement``: what others see of it from then on;
    ``edges``: attribute -> client; ``peers``: the client of the replica's own service. ``http_fd``: a
    listening socket for services that speak HTTP, owned by the service from now on. ``secret`` guards
    connections. ``has_served``: an earlier process of this replica was ready.
    """

    plan: DeploymentPlan
    service: ServicePlan
    record: WorkerRecord
    clock: Clock
    fleet: FleetView
    plugins: Registry
    peers: ServiceClient
    edges: dict[str, ServiceClient] = field(default_factory=dict)
    announcement: Announcement = field(default_factory=Announcement)
    http_fd: int | None = None
    secret: str | None = None
    drain_timeout_s: float = 30.0
    has_served: bool = False


class ManagedService(ABC):
    """A service that needs its context: ``start`` -> ``check_edges`` -> ... -> ``drain`` -> ``close``."""

    endpoints_while_draining: ClassVar[frozenset[str]] = frozenset()
    """Calls that are still answered while the replica drains, because they help it to end."""

    @abstractmethod
    async def start(self, context: ServiceContext) -> WorkerRecord:
        """Get ready to answer calls; returns what to announce. Raises ``DynamoError``."""

    async def check_edges(self) -> None:
        """Return when every edge has answered; the replica is then ready. Raises what stands in the way."""

    async def wait_failed(self) -> None:
        """Never return while the service can go on; raise ``DynamoError`` when it is beyond repair."""
        await anyio.sleep_forever()

    async def drain(self) -> None:
        """Stop admitting and return when nothing runs. Cut off after ``context.drain_timeout_s``."""

    @abstractmethod
    async def close(self) -> None:
        """Give everything back. Idempotent; also after a failed ``start``."""
