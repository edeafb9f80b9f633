"""``Fleet``: the simulated workers, and what a frontend knows of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from dynamo_sdk.engines.mocker import build_cores
from dynamo_sdk.errors import Overloaded
from dynamo_sdk.interfaces import CacheKey, Candidate
from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.kv.prefix_keys import pack_words
from dynamo_sdk.routing import CandidateBook
from dynamo_sdk.types import (
    BlocksRemoved,
    BlocksStored,
    GenerateRequest,
    KVEventBatch,
    KVTier,
    LoadSnapshot,
    Role,
    WorkerId,
    WorkerRecord,
)

from .output import OneTokenEach
from .rank import RankListener, SimRank
from .spec import PoolSpec, SimOptions
from .timeline import Order, Timeline


@dataclass(slots=True, kw_only=True)
class SimWorker:
    """A replica. ``is_leaving``: gets no new requests and ends with its last one."""

    record: WorkerRecord
    spec: PoolSpec
    since_s: float
    ranks: list[SimRank] = field(default_factory=list)
    until_s: float | None = None
    is_leaving: bool = False
    is_reporting: bool = False
    num_requests: int = 0
    last_load: LoadSnapshot | None = None

    def load(self, now_s: float) -> LoadSnapshot:
        """Of all ranks together, as a worker reports it."""
        loads = [rank.load() for rank in self.ranks]
        if len(loads) == 1:
            return loads[0]
        return LoadSnapshot(
            at_s=now_s,
            num_running=sum(load.num_running for load in loads),
            num_waiting=sum(load.num_waiting for load in loads),
            num_waiting_tokens=sum(load.num_waiting_tokens for load in loads),
            num_free_blocks=sum(load.num_free_blocks for load in loads),
            num_blocks=sum(load.num_blocks for load in loads),
            block_load_times=loads[0].block_load_times,
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of one role that take requests, in a stable order."""

    workers: dict[WorkerId, SimWorker]
    candidates: list[Candidate]
    block_size: int


class Fleet:
    """Workers join and leave; their news reach ``book`` and the index as late as ``options`` say."""

    def __init__(
        self, timeline: Timeline, options: SimOptions, listener: RankListener, *, has_overlaps: bool
    ) -> None:
        """``has_overlaps``: some router looks at what workers hold."""
        self.index = PrefixIndex() if has_overlaps and options.has_kv_events else None
        self.book = CandidateBook(self.index, remembers_decisions=has_overlaps)
        self.workers: dict[WorkerId, SimWorker] = {}
        self.gone: list[SimWorker] = []
        self._timeline = timeline
        self._options = options
        self._listener = listener
        self._pools: dict[Role, Pool | None] = {}
        self._num_made: dict[str, int] = {}

    # -- who is there

    def join(self, spec: PoolSpec) -> SimWorker:
        """A new replica, ready at once."""
        number = self._num_made.get(spec.service, 0)
        self._num_made[spec.service] = number + 1
        config = spec.config
        worker_id = WorkerId(f"{spec.service}.{number}")
        record = WorkerRecord(
            worker_id=worker_id,
            service=spec.service,
            replica=number,
            address="",
            is_ready=True,
            role=spec.role,
            engine="mocker",
            dp_size=config.dp_size,
            num_blocks=config.num_blocks,
        )
        worker = SimWorker(record=record, spec=spec, since_s=self._timeline.now_s)
        seats = self.book.join(
            worker_id,
            pool=spec.role,
            dp_size=config.dp_size,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
        )
        self.book.hears_events(worker_id, self.index is not None)
        cores = build_cores(spec.model_path, config, tokens=OneTokenEach(), events_have_tokens=False)
        worker.ranks = [
            SimRank(core, seat, self._timeline, self._listener)
            for core, seat in zip(cores, seats, strict=True)
        ]
        self.workers[worker_id] = worker
        self._pools.clear()
        return worker

    def leave(self, worker: SimWorker) -> None:
        """No new requests; it is gone when it is idle."""
        worker.is_leaving = True
        self._pools.clear()
        self.let_go(worker)

    def let_go(self, worker: SimWorker) -> None:
        """If it is leaving and idle."""
        if worker.is_leaving and not any(rank.core.has_requests for rank in worker.ranks):
            worker_id = worker.record.worker_id
            if self.workers.pop(worker_id, None) is not None:
                worker.until_s = self._timeline.now_s
                self.gone.append(worker)
                for rank in worker.ranks:
                    rank.seat = None
                self.book.leave(worker_id)

    def replicas(self, service: str) -> list[SimWorker]:
        """Those of this service that are there to stay, oldest first."""
        return [
            worker
            for worker in self.workers.values()
            if worker.spec.service == service and not worker.is_leaving
        ]

    def pool(self, role: Role) -> Pool | None:
        """The same object until the fleet changes; None when nobody plays this role."""
        if role not in self._pools:
            found = {
                worker_id: worker
                for worker_id, worker in self.workers.items()
                if worker.record.role is role and not worker.is_leaving
            }
            self._pools[role] = (
                Pool(found, self.book.candidates(found), next(iter(found.values())).spec.config.block_size)
                if found
                else None
            )
        return self._pools[role]

    # -- requests

    def send(self, worker: SimWorker, request: GenerateRequest, keys: list[CacheKey]) -> None:
        """Queue a leg. Raises ``InvalidRequest`` or ``Overloaded``."""
        rank = worker.ranks[request.dp_rank or 0]
        if rank.core.num_waiting >= worker.spec.config.max_num_waiting:
            raise Overloaded(f"{rank.core.num_waiting} requests are already waiting")
        rank.add(request, keys)
        worker.num_requests += 1
        if not worker.is_reporting:
            worker.is_reporting = True
            self._timeline.at(self._timeline.now_s, Order.NEWS, partial(self._report, worker))

    # -- news

    def changed(self, rank: SimRank, batch: KVEventBatch) -> None:
        """A rank's prefix cache."""
        if self.index is not None:
            apply = partial(_apply, self.index, rank, batch)
            self._later(self._options.kv_event_lag_s, apply)

    def _report(self, worker: SimWorker) -> None:
        """Its load, if that has changed, and again later while it has work."""
        now_s = self._timeline.now_s
        load = worker.load(now_s)
        last = worker.last_load
        if last is None or msgspec.structs.replace(last, at_s=now_s) != load:
            worker.last_load = load
            self._later(self._options.load_lag_s, partial(self._heard, worker.record.worker_id, load))
        worker.is_reporting = any(rank.core.has_requests for rank in worker.ranks)
        if worker.is_reporting:
            self._timeline.at(
                now_s + self._options.load_interval_s, Order.NEWS, partial(self._report, worker)
            )

    def _heard(self, worker_id: WorkerId, load: LoadSnapshot) -> None:
        self.book.reported(worker_id, load, self._timeline.now_s)

    def _later(self, lag_s: float, action: Callable[[], None]) -> None:
        if lag_s:
            self._timeline.at(self._timeline.now_s + lag_s, Order.NEWS, action)
        else:
            action()

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books of workers, book or index do not add up; O(blocks)."""
        for worker in self.workers.values():
            for rank in worker.ranks:
                rank.core.check_integrity()
                assert not rank.core.has_requests, (
                    f"{worker.record.worker_id} has requests that nobody waits for"
                )
                if self.index is not None and rank.seat is not None:
                    # A snapshot tells of more: that comes after what the index heard.
                    num_cached = rank.core.tiers.num_told if rank.core.tiers is not None else 0
                    num_cached += sum(
                        len(event.block_hashes)
                        for event in rank.core.kv_snapshot()[1].events
                        if isinstance(event, BlocksStored) and event.tier is KVTier.DEVICE
                    )
                    assert self.index.num_held(rank.seat) == num_cached, "the index lost sight of a cache"
        if self.index is not None:
            self.index.check_integrity()
        self.book.check_integrity()


def _packed(hashes: tuple[int | bytes, ...]) -> bytes:
    """A core's own names are numbers of 64 bits."""
    return pack_words([block for block in hashes if isinstance(block, int)])


def _apply(index: PrefixIndex, rank: SimRank, batch: KVEventBatch) -> None:
    """A core's names of blocks serve as hashes, too: they are all that a simulated prompt is known by."""
    seat = rank.seat
    if seat is None:
        return  # its worker has gone meanwhile
    for event in batch.events:
        if isinstance(event, BlocksStored):
            names = _packed(event.block_hashes)
            parent = event.parent_hash
            assert parent is None or isinstance(parent, int)
            index.store(seat, parent, names, names, event.tier)
        elif isinstance(event, BlocksRemoved):
            index.remove(seat, _packed(event.block_hashes), event.tier)
        else:
            index.clear(seat)
