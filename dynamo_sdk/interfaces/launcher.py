"""``Launcher``: turns a plan into running processes. Read this file to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import msgspec

from dynamo_sdk.types.plan import DeploymentPlan, Inventory


class LaunchOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How ``run`` was called. ``only`` starts one service and joins the registry at ``join``.
    ``secret`` guards every connection of the graph; off loopback it is required."""

    host: str = "127.0.0.1"
    port: int = 8000
    only: str | None = None
    join: str | None = None
    secret: str | None = None
    ready_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0


class Launcher(ABC):
    """Runs one plan. ``async with launcher:`` starts it and guarantees that nothing is left behind.

    Life: ``__aenter__`` starts all replicas -> ``wait_ready`` -> ``scale_to`` any number of times ->
    ``drain`` -> ``__aexit__``.
    """

    @classmethod
    @abstractmethod
    def inventory(cls) -> Inventory:
        """The hosts and GPUs this launcher can use; what ``plan`` compiles against."""

    @abstractmethod
    def __init__(self, plan: DeploymentPlan, options: LaunchOptions) -> None: ...

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every replica, at once if need be. Returns when no process is left."""

    @abstractmethod
    async def wait_ready(self) -> str | None:
        """Return the frontend's URL once every edge of the graph has answered (None where no
        frontend runs).
        Raises ``LaunchError`` naming the service, its last log lines and what to try."""

    @abstractmethod
    async def wait_failed(self) -> None:
        """Never return while the graph can go on; raise ``LaunchError`` when a service is beyond repair."""

    @abstractmethod
    async def scale_to(self, service: str, num_replicas: int) -> None:
        """Start or drain replicas until there are ``num_replicas``. Raises ``LaunchError`` when the
        inventory cannot hold them."""

    @abstractmethod
    async def drain(self) -> None:
        """Stop admitting and let what runs end, for at most ``drain_timeout_s``."""
