"""How a ticket describes a memory to those who read it by themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynamo_sdk.errors import ConfigError, TransferError
from dynamo_sdk.interfaces import BlockMemory
from dynamo_sdk.types import TransferSettings

from .nixl import AgentOnDemand, NixlTicket, nixl_pays
from .region import describe_region
from .ticket import RegionTicket

logger = logging.getLogger(__name__)


class MemoryOffers:
    def __init__(self, settings: TransferSettings, agent: AgentOnDemand) -> None:
        self._settings = settings
        self._agent = agent
        self._nixl: dict[int, NixlTicket] = {}  # by the address of a memory

    def register(self, memory: BlockMemory) -> None:
        """Offer ``memory`` through NIXL from now on, where the settings want that or it pays. Takes seconds.
        Raises ``ConfigError`` when NIXL is a must and cannot work."""
        is_must = self._settings.back_end == "nixl"
        if not is_must and (self._settings.back_end != "auto" or not nixl_pays(memory)):
            return
        try:
            ticket = self._agent.agent().ticket(memory)
        except (ConfigError, TransferError) as error:
            if is_must:
                raise ConfigError(f"back_end is nixl: {error}") from error
            logger.warning("KV blocks are not offered through NIXL: %s", error)
            return
        if ticket is not None:
            self._nixl[ticket.address] = ticket
        elif is_must:
            raise ConfigError("back_end is nixl, but this engine's blocks do not lie in one piece of memory")

    def nixl(self, memory: BlockMemory) -> NixlTicket | None:
        """None: not registered."""
        span = memory.span if self._nixl else None
        return None if span is None else self._nixl.get(span.address)

    def begin_serving(self, memory: BlockMemory) -> Callable[[], None] | None:
        """As ``NixlAgent.begin_serving``; None: ``memory`` is not registered."""
        if self.nixl(memory) is None:
            return None
        return self._agent.agent().begin_serving()

    def region(self, memory: BlockMemory) -> RegionTicket | None:
        """None: others cannot map it."""
        region = memory.shared_region
        if region is None:
            return None
        try:
            return describe_region(region)
        except OSError as error:
            logger.warning("the shared KV blocks cannot be found, they will be streamed: %s", error)
            return None

    def close(self) -> None:
        """Idempotent."""
        self._nixl.clear()
        self._agent.close()
