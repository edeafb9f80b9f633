"""NIXL's Python API for agents of one process: a read is a copy, done when it is asked after."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace


class Broken(Exception):
    pass


@dataclass
class FakeHandle:
    local: list[tuple[int, int, int]]
    remote: list[tuple[int, int, int]]
    num_asked: int = 0
    is_released: bool = False


@dataclass
class FakeNixl:
    """``num_polls``: how often a request answers that it is under way. ``outcome``: how it ends.
    ``needs_peer``: as over TCP, nothing moves until the other agent makes progress."""

    num_polls: int = 2
    num_served: int = 0
    needs_peer: bool = False
    outcome: str = "DONE"
    is_installed: bool = True
    can_register: bool = True
    registered: dict[int, int] = field(default_factory=dict)  # address -> bytes, over all agents
    handles: list[FakeHandle] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)
    on_poll: Callable[[], None] | None = None
    agents: weakref.WeakSet[FakeAgent] = field(default_factory=weakref.WeakSet)

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(
            nixl_agent=lambda name, config: FakeAgent(self, name, config),
            nixl_agent_config=lambda **settings: settings,
            nixl_thread_sync_t=Enum("nixl_thread_sync_t", ["NIXL_THREAD_SYNC_STRICT"]),
        )


class FakeAgent:
    def __init__(self, nixl: FakeNixl, name: str, config: dict[str, object]) -> None:
        assert not config["enable_prog_thread"], "a core for each agent"
        self._nixl, self._name = nixl, name
        self._peers: set[str] = set()
        nixl.agents.add(self)
        self.backends = {"UCX": 1} if nixl.is_installed else {}

    def register_memory(self, places, kind):
        assert kind == "DRAM"
        if not self._nixl.can_register:
            raise Broken("NIXL_ERR_NOT_SUPPORTED")
        for address, num_bytes, _, _ in places:
            self._nixl.registered[address] = num_bytes
        return places

    def deregister_memory(self, places) -> None:
        for address, _, _, _ in places:
            del self._nixl.registered[address]

    def get_agent_metadata(self) -> bytes:
        return self._name.encode()

    def add_remote_agent(self, metadata: bytes) -> None:
        self._peers.add(metadata.decode())

    def remove_remote_agent(self, name: str) -> None:
        self._peers.remove(name)
        self._nixl.disconnected.set()

    def get_new_notifs(self) -> dict[str, list[bytes]]:
        if self._nixl.outcome == "no progress":
            raise Broken("NIXL_ERR_BACKEND")
        self._nixl.num_served += 1
        return {}

    def get_xfer_descs(self, places, kind):
        assert kind == "DRAM"
        return [tuple(map(int, place)) for place in places]

    def initialize_xfer(self, operation, local, remote, peer):
        assert operation == "READ"
        assert peer in self._peers, "not connected"
        assert [size for _, size, _ in local] == [size for _, size, _ in remote]
        for address, num_bytes, _ in (*local, *remote):
            assert self._lies_inside(address, num_bytes), "memory that nobody registered"
        handle = FakeHandle(local, remote)
        self._nixl.handles.append(handle)
        return handle

    def transfer(self, handle: FakeHandle) -> str:
        if self._nixl.outcome == "raise":
            raise Broken("NIXL_ERR_REMOTE_DISCONNECT")
        return "PROC"

    def check_xfer_state(self, handle: FakeHandle) -> str:
        assert not handle.is_released
        if self._nixl.needs_peer and not self._nixl.num_served:
            return "PROC"
        handle.num_asked += 1
        if self._nixl.on_poll is not None:
            self._nixl.on_poll()
        if handle.num_asked <= self._nixl.num_polls:
            return "PROC"
        if self._nixl.outcome == "DONE":
            for (target, size, _), (source, _, _) in zip(handle.local, handle.remote, strict=True):
                ctypes.memmove(target, source, size)
        return self._nixl.outcome

    def release_xfer_handle(self, handle: FakeHandle) -> None:
        assert handle.num_asked > self._nixl.num_polls, "released while it may still write"
        handle.is_released = True

    def _lies_inside(self, address: int, num_bytes: int) -> bool:
        return any(
            start <= address and address + num_bytes <= start + size
            for start, size in self._nixl.registered.items()
        )
