"""Faults planted into routers, planners, connectors and stores; each fails the check named here."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest

from dynamo_sdk.interfaces import (
    CacheKey,
    Candidate,
    CandidateCost,
    CostTerm,
    Freed,
    Handover,
    KVStoreStatistics,
    PlannerEffects,
    PlannerInput,
    Routed,
    RouterFact,
    RoutingContext,
    RoutingDecision,
    RoutingRequest,
)
from dynamo_sdk.testing import (
    CONNECTOR_CHECKS,
    PLANNER_CHECKS,
    ROUTER_CHECKS,
    STORE_CHECKS,
    FakeKVConnector,
    FakePlanner,
    FakeRouter,
    MemoryKVStore,
    check_kv_connector,
    check_kv_store,
    check_planner,
    check_router,
)
from dynamo_sdk.types import GenerateRequest, KVTransferParams, Role, WorkerId, WorkerRecord

from .folder_store import DIGEST_BYTES, FolderKVStore


class RouterFault(FakeRouter):
    """``shows_in``: checks that cannot help failing too. The fake remembers all it saw; faults need not."""

    caught_by: str
    shows_in: frozenset[str] = frozenset()

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        decision = super().select(request, candidates, context)
        if type(self) is not RemembersEverybody:
            del self.requests[1:]
        return decision

    def observe(self, fact: RouterFact, now_s: float) -> None:
        if type(self) is RemembersEverybody:
            super().observe(fact, now_s)


class ChoosesAStranger(RouterFault):
    caught_by = "chooses_a_candidate"
    shows_in = frozenset({"chooses_among_512", "chooses_the_only_candidate", "lets_workers_leave"})

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        return RoutingDecision(worker_id=WorkerId("a"))


class ForgetsTheRank(RouterFault):
    caught_by = "chooses_the_only_candidate"
    shows_in = frozenset({"chooses_a_candidate"})

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        return RoutingDecision(worker_id=candidates[0].worker_id)


class GlobalChance(RouterFault):
    caught_by = "chance_comes_from_the_context"
    shows_in = frozenset({"explaining_changes_nothing"})

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        chosen = random.choice(candidates)
        return RoutingDecision(worker_id=chosen.worker_id, dp_rank=chosen.dp_rank)


class SortsInPlace(RouterFault):
    caught_by = "leaves_its_input_alone"

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        if isinstance(candidates, list):
            candidates.sort(key=lambda candidate: candidate.num_active_requests)
        return super().select(request, candidates, context)


class NeedsAList(RouterFault):
    caught_by = "takes_any_sequence"

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        copy = candidates.copy()  # type: ignore[attr-defined]
        return super().select(request, copy, context)


class ExplainsNonsense(RouterFault):
    caught_by = "explains_with_candidates_only"
    shows_in = frozenset({"decisions_are_data"})

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        chosen = candidates[0]
        cost = CandidateCost(
            worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, terms=(CostTerm("load", float("nan")),)
        )
        return RoutingDecision(worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, costs=(cost,))


class KeepsCandidates(RouterFault):
    caught_by = "keeps_no_candidate"

    def __init__(self) -> None:
        super().__init__()
        self.last: Sequence[Candidate] = ()

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        self.last = tuple(candidates)
        return super().select(request, candidates, context)


class ChoosesOtherwiseWhenAsked(RouterFault):
    caught_by = "explaining_changes_nothing"

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        shown = candidates[::-1] if context.is_explaining else candidates
        return super().select(request, shown, context)


class ReasonsThatAreNoText(RouterFault):
    caught_by = "decisions_are_data"

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        return msgspec.structs.replace(super().select(request, candidates, context), reason=len(candidates))


class HasATableOf256(RouterFault):
    caught_by = "chooses_among_512"

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        bytes([len(candidates) - 1])  # a ValueError beyond 255
        return super().select(request, candidates, context)


class MissesThoseWhoLeft(RouterFault):
    caught_by = "lets_workers_leave"
    shows_in = frozenset({"takes_facts_in_any_order", "hears_of_strangers"})

    def __init__(self) -> None:
        super().__init__()
        self.present: set[str] = set()

    def select(
        self, request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext
    ) -> RoutingDecision:
        self.present = {candidate.worker_id for candidate in candidates}
        return super().select(request, candidates, context)

    def observe(self, fact: RouterFact, now_s: float) -> None:
        if fact.worker_id not in self.present:
            raise KeyError(fact.worker_id)


class ExpectsFactsInTurn(RouterFault):
    caught_by = "takes_facts_in_any_order"

    def __init__(self) -> None:
        super().__init__()
        self.open: set[str] = set()

    def observe(self, fact: RouterFact, now_s: float) -> None:
        if isinstance(fact, Routed):
            assert fact.request_id not in self.open, "routed twice"
            self.open.add(fact.request_id)
        elif isinstance(fact, Freed):
            self.open.discard(fact.request_id)


class RemembersEverybody(RouterFault):
    caught_by = "forgets_what_has_ended"


class KnowsOnlyItsOwn(RouterFault):
    caught_by = "hears_of_strangers"
    shows_in = frozenset({"takes_facts_in_any_order"})

    def observe(self, fact: RouterFact, now_s: float) -> None:
        if not self.requests:
            raise KeyError(fact.request_id)


class PlannerFault(FakePlanner):
    caught_by: str
    shows_in: frozenset[str] = frozenset()


class StandsStill(PlannerFault):
    caught_by = "next_tick_lies_ahead"

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        return PlannerEffects(next_tick_s=facts.now_s)


class KnowsNoLimits(PlannerFault):
    caught_by = "targets_are_within_limits"

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        return PlannerEffects(next_tick_s=facts.now_s + 1, scale_to={"Api": 0} if facts.services else {})


class SpendsGpusThatAreNotThere(PlannerFault):
    caught_by = "growth_fits_the_free_gpus"

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        scale_to = {service.service: service.max_replicas or 1 for service in facts.services}
        return PlannerEffects(next_tick_s=facts.now_s + 1, scale_to=scale_to)


class LooksAtTheClock(PlannerFault):
    caught_by = "same_facts_same_effects"
    numbers = itertools.count(1)

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        return PlannerEffects(next_tick_s=facts.now_s + next(self.numbers))


class NeedsMeasurements(PlannerFault):
    caught_by = "lives_without_measurements"

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        sum(service.num_ready for service in facts.services) / len(facts.services)
        return super().on_tick(facts)


class TargetsOfHalfAReplica(PlannerFault):
    caught_by = "effects_are_data"

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        scale_to = {service.service: float(service.num_replicas) for service in facts.services}
        return PlannerEffects(next_tick_s=facts.now_s + 1, scale_to=scale_to)  # type: ignore[arg-type]


class ConnectorFault(FakeKVConnector):
    caught_by: str
    shows_in: frozenset[str] = frozenset()


class NamesNoLeg(ConnectorFault):
    caught_by = "declares_its_handover"

    def __init__(self) -> None:
        super().__init__(first_token=Role.AGGREGATED)


class NumbersForArgs(ConnectorFault):
    caught_by = "engine_args_are_text"

    def engine_args(self, role: Role) -> dict[str, str]:
        return {"port": 5000}  # type: ignore[dict-item]


class RendezvousWithoutATicket(ConnectorFault):
    caught_by = "prefill_ticket_bears_its_name"
    shows_in = frozenset({"rendezvous_pairs_the_legs"})

    def __init__(self) -> None:
        super().__init__(handover=Handover.RENDEZVOUS)

    def prefill_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, decode: WorkerRecord | None
    ) -> KVTransferParams | None:
        return None


class DeadOnArrival(ConnectorFault):
    caught_by = "decode_ticket_bears_its_name"

    def __init__(self) -> None:
        super().__init__(ttl_s=0.0)


class OneRoomForAll(ConnectorFault):
    caught_by = "rendezvous_pairs_the_legs"

    def __init__(self) -> None:
        super().__init__(handover=Handover.RENDEZVOUS)

    def _ticket(self, text: str) -> KVTransferParams:
        return super()._ticket("room 1")


class DropsTheAnswer(ConnectorFault):
    caught_by = "answer_reaches_decode"

    def _ticket(self, text: str) -> KVTransferParams:
        return super()._ticket("come and get it")


class LivesLonger(ConnectorFault):
    caught_by = "ticket_lives_no_longer_than_its_answer"

    def __init__(self) -> None:
        super().__init__(ttl_s=600.0)


class CountsItsTickets(ConnectorFault):
    caught_by = "is_pure"
    numbers = itertools.count()

    def _ticket(self, text: str) -> KVTransferParams:
        return super()._ticket(f"{text} {next(self.numbers)}")


class TakesAnyAnswer(ConnectorFault):
    caught_by = "strange_answer_is_a_transfer_error"
    shows_in = frozenset({"answer_reaches_decode", "ticket_lives_no_longer_than_its_answer"})

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        return self._ticket("any")


class StoreFault(MemoryKVStore):
    caught_by: str
    shows_in: frozenset[str] = frozenset()


class CutsBlocks(StoreFault):
    caught_by = "returns_what_was_put"
    shows_in = frozenset(
        {
            "cancelled_put_leaves_all_or_nothing",
            "copies_what_it_keeps",
            "puts_again",
            "serves_many_at_once",
            "stays_within_capacity",
        }
    )

    async def get(self, key: CacheKey) -> bytes | None:
        block = await super().get(key)
        return block and block[:-1]


class LendsAnotherBlock(StoreFault):
    caught_by = "missing_is_none"
    shows_in = frozenset({"delete_forgets", "serves_many_at_once"})

    async def get(self, key: CacheKey) -> bytes | None:
        return await super().get(key) or next(iter(self._blocks.values()), None)


class AnswersOncePerName(StoreFault):
    caught_by = "contains_answers_in_order"

    async def contains(self, keys: Sequence[CacheKey]) -> list[bool]:
        return await super().contains(sorted(set(keys)))


class NeverForgets(StoreFault):
    caught_by = "delete_forgets"
    shows_in = frozenset({"statistics_count"})

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        pass


class KeepsAView(StoreFault):
    caught_by = "copies_what_it_keeps"
    shows_in = frozenset({"statistics_count"})

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        self._blocks[key] = block  # type: ignore[assignment]
        return True

    async def get(self, key: CacheKey) -> bytes | None:
        view = self._blocks.get(key)
        return None if view is None else bytes(view)


class CountsEveryPut(StoreFault):
    caught_by = "puts_again"
    shows_in = frozenset({"statistics_count"})
    num_puts = 0

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        self.num_puts += 1
        return await super().put(key, block)

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(num_blocks=self.num_puts, used_bytes=self._used_bytes)


class OverflowsItsCapacity(StoreFault):
    caught_by = "stays_within_capacity"

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(
            num_blocks=len(self._blocks), used_bytes=self._used_bytes, capacity_bytes=10_000
        )


class CountsNothing(StoreFault):
    caught_by = "statistics_count"

    def statistics(self) -> KVStoreStatistics:
        return KVStoreStatistics(num_blocks=0, used_bytes=0)


class WritesInTwoParts(StoreFault):
    """Another task sees the first half, and a cancelled put leaves it for ever."""

    caught_by = "serves_many_at_once"
    shows_in = frozenset({"cancelled_put_leaves_all_or_nothing"})

    async def put(self, key: CacheKey, block: bytes | memoryview) -> bool:
        copy = bytes(block)
        self._blocks[key] = copy[: len(copy) // 2]
        kept = await super().put(key, copy)
        self._blocks[key] = copy
        return kept


class LeavesHalfABlock(WritesInTwoParts):
    caught_by = "cancelled_put_leaves_all_or_nothing"
    shows_in = frozenset({"serves_many_at_once"})


class ClosesOnce(StoreFault):
    caught_by = "closes_twice"
    is_closed = False

    async def close(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        self.is_closed = True


ROUTER_FAULTS = RouterFault.__subclasses__()
PLANNER_FAULTS = PlannerFault.__subclasses__()
CONNECTOR_FAULTS = ConnectorFault.__subclasses__()
STORE_FAULTS = [*StoreFault.__subclasses__(), LeavesHalfABlock]


class DiskFault(FolderKVStore):
    caught_by: str


class ForgetsOnClose(DiskFault):
    caught_by = "survives_a_restart"

    async def close(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()


class TrustsTheDisk(DiskFault):
    caught_by = "damage_is_not_returned"

    async def get(self, key: CacheKey) -> bytes | None:
        file = self.folder / key.hex()
        return file.read_bytes()[DIGEST_BYTES:] if file.exists() else None


DISK_FAULTS = DiskFault.__subclasses__()


def an_answer(request: GenerateRequest) -> KVTransferParams:
    return KVTransferParams(connector="fake", payload=request.request_id.encode(), ttl_s=1.0)


@pytest.mark.parametrize("fault", ROUTER_FAULTS, ids=lambda fault: fault.__name__)
def test_router_fault(fault: type[RouterFault]) -> None:
    failed = {result.name for result in check_router(fault).failed}
    assert failed == {fault.caught_by} | fault.shows_in


@pytest.mark.parametrize("fault", PLANNER_FAULTS, ids=lambda fault: fault.__name__)
def test_planner_fault(fault: type[PlannerFault]) -> None:
    failed = {result.name for result in check_planner(fault).failed}
    assert failed == {fault.caught_by} | fault.shows_in


@pytest.mark.parametrize("fault", CONNECTOR_FAULTS, ids=lambda fault: fault.__name__)
def test_connector_fault(fault: type[ConnectorFault]) -> None:
    report = check_kv_connector(fault, name="fake", answer=an_answer)
    assert {result.name for result in report.failed} == {fault.caught_by} | fault.shows_in, report


@pytest.mark.anyio
@pytest.mark.parametrize("fault", STORE_FAULTS, ids=lambda fault: fault.__name__)
async def test_store_fault(fault: type[StoreFault]) -> None:
    report = await check_kv_store(fault)
    assert {result.name for result in report.failed} == {fault.caught_by} | fault.shows_in, report


@pytest.mark.anyio
@pytest.mark.parametrize("fault", DISK_FAULTS, ids=lambda fault: fault.__name__)
async def test_disk_fault(fault: type[DiskFault]) -> None:
    report = await check_kv_store(on_disk=fault)
    assert {result.name for result in report.failed} == {fault.caught_by}, report


@pytest.mark.parametrize(
    ("faults", "checks"),
    [
        (ROUTER_FAULTS, ROUTER_CHECKS),
        (PLANNER_FAULTS, PLANNER_CHECKS),
        (CONNECTOR_FAULTS, CONNECTOR_CHECKS),
        ([*STORE_FAULTS, *DISK_FAULTS], STORE_CHECKS),
    ],
)
def test_every_check_has_caught_something(faults: list[type], checks: Sequence[object]) -> None:
    caught = {fault.caught_by for fault in faults}  # type: ignore[attr-defined]
    assert caught == {check.__name__ for check in checks}  # type: ignore[attr-defined]
