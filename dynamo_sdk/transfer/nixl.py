"""Reading KV blocks through NIXL: RDMA and GPU memory where a machine has them, whatever UCX finds elsewhere.

::

    prefill side   ticket(memory) -> NixlTicket        what others need to reach it
                   begin_serving()                     while they read: transports in software need us
    decode side    read(ticket, ids, memory, ids)

NIXL's own progress thread is off. It takes a whole core, idle or not, for as long as its agent lives;
``read`` and ``begin_serving`` make progress for as long as somebody reads.

NIXL (the extra ``nixl``) is imported by the first ``NixlAgent``, which takes seconds; make it on a thread.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dynamo_sdk.errors import ConfigError, TransferError
from dynamo_sdk.interfaces import BlockMemory, MemorySpan

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
"""The most bytes of one request (one block, if that is more). On a CPU a request may block until it is done,
and nothing can stop it."""

MAX_IN_FLIGHT = 4
"""Requests that are under way at once in one fetch."""

SERVE_PAUSE_S = 1e-4
"""Between two looks at what readers need."""

SETTLE_LIMIT_S = 30.0
"""A request that is not wanted any more is waited for so long. UCX looks every 20 s whether a peer lives; one
that lives and hangs would hold the request for ever."""

Offsets = npt.NDArray[np.uint64]
Piece = tuple[Offsets, Offsets, Offsets]
"""Runs of bytes: offsets there, offsets here, how many."""

_NETWORKS = Path("/sys/class/infiniband")


class NixlTicket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How other agents reach a registered memory. ``metadata`` is NIXL's own and names ``agent``; ``address``
    and ``gpu`` are as the agent's process sees them."""

    agent: str
    metadata: bytes
    address: int
    size_bytes: int
    gpu: int | None = None


class NixlAgent:
    """One per block server or fetcher. Thread-safe. Memory stays registered, and alive, until ``close``.

    A request cannot be called back: cancelled, it may still be written by the network. So where a peer hangs,
    the whole agent goes: it takes no new reads, and when its other reads have ended it is destroyed, with the
    connections and the threads that could write. Only then does the read return that hung.

    ``module`` is NIXL's Python API; by default it is imported. Raises ``ConfigError`` when there is none.
    """

    def __init__(
        self,
        *,
        module: Any = None,  # the API of a package that need not be there
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        nixl = _import_nixl() if module is None else module
        self.name = f"dynamo-sdk-{os.getpid()}-{secrets.token_hex(8)}"
        config = nixl.nixl_agent_config(
            backends=["UCX"],
            enable_prog_thread=False,
            sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
        )
        try:
            self._agent = nixl.nixl_agent(self.name, config)
        except Exception as error:
            raise ConfigError(f"NIXL does not start here: {error}") from error
        if "UCX" not in self._agent.backends:  # a missing plugin is only logged
            raise ConfigError("the installed NIXL has no UCX back end")
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._is_destroyed = threading.Condition(self._lock)
        self._num_reading = 0
        self._num_readers = 0  # others, of our memory
        self._server: threading.Thread | None = None
        self._registered: dict[tuple[int, int], tuple[BlockMemory, Any]] = {}
        self._peers: dict[str, bytes] = {}  # name -> the metadata that was loaded
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """By ``close``, or for a peer that hangs."""
        return self._is_closed

    def register(self, memory: BlockMemory) -> MemorySpan | None:
        """Make ``memory`` known to the network; nothing to do when it is already. None: it does not lie in
        one piece. Raises ``TransferError``."""
        span = memory.span
        if span is None:
            return None
        with self._lock:
            self._require_open()
            key = (span.address, span.size_bytes)
            if key not in self._registered:
                place = [(span.address, span.size_bytes, span.gpu or 0, "")]
                try:
                    registration = self._agent.register_memory(place, _kind_of(span.gpu))
                except Exception as error:
                    message = f"NIXL cannot register {span.size_bytes} bytes: {error}"
                    raise TransferError(message) from error.with_traceback(None)
                self._registered[key] = (memory, registration)
        return span

    def ticket(self, memory: BlockMemory) -> NixlTicket | None:
        """Register ``memory`` and say how others reach it. None, and raises: as ``register``."""
        span = self.register(memory)
        if span is None:
            return None
        try:
            metadata = self._agent.get_agent_metadata()
        except Exception as error:
            raise TransferError(f"NIXL does not say how it is reached: {error}") from error
        return NixlTicket(
            agent=self.name,
            metadata=metadata,
            address=span.address,
            size_bytes=span.size_bytes,
            gpu=span.gpu,
        )

    def read(
        self,
        peer: NixlTicket,
        source_ids: Sequence[int],
        into: BlockMemory,
        own_ids: Sequence[int],
        remaining_s: Callable[[], float],
    ) -> None:
        """Copy block ``source_ids[i]`` of the peer into block ``own_ids[i]``, in registered memory.

        ``remaining_s()`` gives the seconds left and raises when there are none. However this ends, nobody
        writes into ``into`` afterwards: where a peer hangs that takes ``SETTLE_LIMIT_S`` more, and until the
        agent's other reads have ended. Raises ``TransferError``.
        """
        span, size = into.span, into.layout.block_bytes
        assert span is not None
        _require_inside("the prefill worker's", source_ids, peer.size_bytes // size)
        _require_inside("our own", own_ids, span.size_bytes // size)
        under_way: deque[Any] = deque()
        with self._lock:
            self._require_open()
            self._num_reading += 1
        try:
            remaining_s()
            self._connect(peer)
            for piece in _pieces(source_ids, own_ids, size):
                remaining_s()
                while len(under_way) >= MAX_IN_FLIGHT:
                    self._finish(under_way, remaining_s)
                self._post(peer, span, piece, under_way)
            while under_way:
                self._finish(under_way, remaining_s)
        except TransferError:
            raise
        except Exception as error:  # here and elsewhere: its frames would keep the agent
            raise TransferError(f"NIXL: {error}") from error.with_traceback(None)
        finally:
            self._leave(is_settled=self._settle(under_way))

    def begin_serving(self) -> Callable[[], None]:
        """Let somebody connect and read, until what is returned is called; that is idempotent."""
        with self._lock:
            self._num_readers += 1
            if self._server is None and not self._is_closed:
                self._server = threading.Thread(target=self._serve, name="nixl-serve", daemon=True)
                self._server.start()
        is_over = False

        def end() -> None:
            nonlocal is_over
            with self._lock:
                self._num_readers -= not is_over
                is_over = True

        return end

    def _serve(self) -> None:
        while True:
            with self._lock:
                if self._is_closed or not self._num_readers:
                    self._server = None
                    return
                try:
                    self._agent.get_new_notifs()  # asked for nothing but the progress that it makes
                except Exception as error:  # whoever reads notices; the next one begins a new thread
                    logger.warning("NIXL makes no progress: %s", error)
                    self._server = None
                    return
            time.sleep(SERVE_PAUSE_S)

    def forget(self, name: str) -> None:
        """Disconnect from a peer. Idempotent."""
        with self._lock:
            if self._peers.pop(name, None) is not None and not self._is_closed:
                try:
                    self._agent.remove_remote_agent(name)
                except Exception as error:
                    raise TransferError(f"NIXL: {error}") from error.with_traceback(None)

    def close(self) -> None:
        """Let go of all memory. No read is under way. Idempotent."""
        with self._lock:
            self._is_closed = True
            self._destroy()

    def _connect(self, peer: NixlTicket) -> None:
        with self._lock:
            if self._peers.get(peer.agent) != peer.metadata:
                self._agent.add_remote_agent(peer.metadata)
                self._peers[peer.agent] = peer.metadata

    def _require_open(self) -> None:
        if self._is_closed:
            raise TransferError("the NIXL agent is closed")

    def _leave(self, *, is_settled: bool) -> None:
        """A read has ended, or has only a request left that will not end."""
        with self._lock:
            self._num_reading -= 1
            if not is_settled:
                logger.warning("a NIXL peer hangs: the agent is given up, the next fetch makes a new one")
                self._is_closed = True
            if self._is_closed and not self._num_reading:
                self._destroy()
            while not is_settled and self._agent is not None:
                self._is_destroyed.wait()

    def _destroy(self) -> None:
        for _, registration in self._registered.values():
            try:
                self._agent.deregister_memory(registration)
            except Exception as error:
                logger.warning("NIXL does not let go of memory: %s", error)
        self._registered.clear()
        self._peers.clear()
        self._agent = None  # the last reference, for nobody's requests are left either
        self._is_destroyed.notify_all()

    def _post(
        self,
        peer: NixlTicket,
        span: MemorySpan,
        piece: tuple[Offsets, Offsets, Offsets],
        under_way: deque[Any],
    ) -> None:
        there, here, num_bytes = piece
        theirs = _descriptors(peer.address, peer.gpu, there, num_bytes)
        ours = _descriptors(span.address, span.gpu, here, num_bytes)
        handle = self._agent.initialize_xfer(
            "READ",
            self._agent.get_xfer_descs(ours, _kind_of(span.gpu)),
            self._agent.get_xfer_descs(theirs, _kind_of(peer.gpu)),
            peer.agent,
        )
        under_way.append(handle)
        del handle  # a failure's frames would keep it, and by it the agent
        if self._agent.transfer(under_way[-1]) == "ERR":
            raise TransferError("NIXL could not start to read")

    def _finish(self, under_way: deque[Any], remaining_s: Callable[[], float]) -> None:
        for _ in _growing_pauses():
            state = self._agent.check_xfer_state(under_way[0])
            if state != "PROC":
                self._agent.release_xfer_handle(under_way.popleft())
                if state != "DONE":
                    raise TransferError("NIXL could not read")
                return
            remaining_s()

    def _settle(self, under_way: deque[Any]) -> bool:
        """Wait for what cannot be called back, for ``SETTLE_LIMIT_S`` in all. UCX ends requests to a peer
        that is gone by itself. False: some are still under way, let go of."""
        deadline_s = self._monotonic_s() + SETTLE_LIMIT_S
        while under_way:
            try:
                for _ in _growing_pauses():
                    if self._agent.check_xfer_state(under_way[0]) != "PROC":
                        break
                    if self._monotonic_s() > deadline_s:
                        under_way.clear()
                        return False
                self._agent.release_xfer_handle(under_way[0])
            except Exception as error:
                logger.debug("a NIXL request has failed: %s", error)
            under_way.popleft()
        return True


class AgentOnDemand:
    """One agent, made by whoever needs it first; a failure to make it is kept, too. Thread-safe."""

    def __init__(self, make: Callable[[], NixlAgent] = NixlAgent) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._agent: NixlAgent | None = None
        self._failure: ConfigError | None = None

    def agent(self) -> NixlAgent:
        """Takes seconds the first time. Raises ``ConfigError``."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._agent is None or self._agent.is_closed:
                try:
                    self._agent = self._make()
                except ConfigError as error:
                    logger.warning("KV blocks will not go through NIXL: %s", error)
                    self._failure = error
                    raise
            return self._agent

    def forget(self, name: str) -> None:
        """Disconnect from a peer. Idempotent."""
        with self._lock:
            if self._agent is not None:
                self._agent.forget(name)

    def close(self) -> None:
        """Idempotent; no read is under way."""
        with self._lock:
            if self._agent is not None:
                self._agent.close()
            self._agent, self._failure = None, ConfigError("the NIXL agent is closed")


def nixl_pays(memory: BlockMemory) -> bool:
    """Whether NIXL can be expected to beat a socket: ``memory`` lies on a GPU, or there is an RDMA device.
    From host memory to host memory over TCP it reached a third of what our own connections do."""
    span = memory.span
    if span is not None and span.gpu is not None:
        return True
    return _NETWORKS.is_dir() and any(_NETWORKS.iterdir())


def _import_nixl() -> Any:
    try:
        return importlib.import_module("nixl._api")
    except ImportError as error:
        raise ConfigError(f"NIXL is not usable here ({error}); try: pip install 'dynamo-sdk[nixl]'") from None


def _kind_of(gpu: int | None) -> str:
    return "DRAM" if gpu is None else "VRAM"


def _pieces(source_ids: Sequence[int], own_ids: Sequence[int], block_bytes: int) -> Iterator[Piece]:
    """Runs in which both sides' blocks follow each other, a bounded number of bytes at a time. In arrays,
    because NIXL takes them as they are."""
    if not own_ids:
        return
    theirs, ours = np.array(source_ids, np.uint64), np.array(own_ids, np.uint64)
    is_break = (theirs[1:] != theirs[:-1] + 1) | (ours[1:] != ours[:-1] + 1)
    step = max(1, PIECE_BYTES // block_bytes)
    starts = np.union1d(np.flatnonzero(is_break) + 1, np.arange(0, len(ours), step))
    counts = np.diff(starts, append=len(ours)).astype(np.uint64)
    for first in range(0, len(ours), step):
        runs = slice(*np.searchsorted(starts, [first, first + step]))
        at = starts[runs]
        yield theirs[at] * block_bytes, ours[at] * block_bytes, counts[runs] * block_bytes


def _descriptors(address: int, gpu: int | None, offsets: Offsets, num_bytes: Offsets) -> Offsets:
    """Rows of (address, bytes, device)."""
    rows = np.empty((len(offsets), 3), np.uint64)
    rows[:, 0], rows[:, 1], rows[:, 2] = offsets + address, num_bytes, gpu or 0
    return rows


def _growing_pauses() -> Iterator[None]:
    """Look often at first, then some thousand times a second."""
    for number in count():
        yield
        if number >= 50:
            time.sleep(min(2e-4, 1e-5 * (number - 49)))


def _require_inside(whose: str, block_ids: Sequence[int], num_blocks: int) -> None:
    if block_ids and not 0 <= min(block_ids) <= max(block_ids) < num_blocks:
        raise TransferError(f"a block outside of {whose} memory of {num_blocks} blocks was named")
