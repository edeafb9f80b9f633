"""The request flow against a naive fleet that fails in every way it can."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_sdk.errors import (
    DynamoError,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    TicketExpired,
    TransferError,
    Unavailable,
)
from dynamo_sdk.flow import (
    OVER,
    Action,
    CancelLeg,
    Emit,
    Fail,
    FlowConfig,
    FlowState,
    Migrated,
    Observe,
    ReleaseBlocks,
    RequestFlow,
    Route,
    Send,
)
from dynamo_sdk.interfaces import Freed, Handover, KVConnector, Routed
from dynamo_sdk.types import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVTransferParams,
    LegTiming,
    Role,
    SamplingParams,
    TokenLogprobs,
    Usage,
    WorkerId,
    WorkerRecord,
    pack_tokens,
    unpack_tokens,
)

PROMPT = [7, 8, 9]
TTL_S = 30.0


class PassOn(KVConnector):
    """Sequential: decode gets what prefill answered."""

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        if answer is None:
            raise TransferError("no ticket")
        return answer


class RecomputeFirst(PassOn):
    first_token = Role.DECODE


class Meet(KVConnector):
    handover = Handover.RENDEZVOUS
    first_token = Role.DECODE
    decodes_alone = False

    def prefill_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, decode: WorkerRecord | None
    ) -> KVTransferParams:
        assert decode is not None
        return KVTransferParams(connector="meet", payload=f"room {request.request_id}".encode())

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        assert answer is not None
        return answer


def request(max_tokens: int = 5) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="m", prompt=pack_tokens(PROMPT), sampling=SamplingParams(max_tokens=max_tokens)
    )


def worker(name: str) -> WorkerRecord:
    return WorkerRecord(worker_id=WorkerId(name), service="S", replica=0, address="unix:/x")


def token_at(position: int) -> int:
    """What every correct engine would say at this position of the output."""
    return 100 + position


def expected(max_tokens: int) -> list[int]:
    return [token_at(position) for position in range(max_tokens)]


def leg_chunks(sent: GenerateRequest, connector: KVConnector | None) -> list[GenerateChunk]:
    """What an engine answers to one leg."""
    done, total = sent.num_generated_tokens, sent.sampling.max_tokens
    usage = Usage(sent.num_prompt_tokens, 0, 0)
    if sent.role is Role.PREFILL:
        chunk = GenerateChunk((token_at(done),), (TokenLogprobs(-0.5),))
        if done + 1 == total:
            return [msgspec.structs.replace(chunk, finish_reason=FinishReason.LENGTH, usage=usage)]
        ticket = KVTransferParams(connector="x", payload=b"t", ttl_s=TTL_S)
        timing = LegTiming(queue_s=0.5, prefill_s=1.0)
        return [
            chunk,
            GenerateChunk(
                finish_reason=FinishReason.HANDOVER, kv_transfer=ticket, usage=usage, timing=timing
            ),
        ]
    chunks = [GenerateChunk((token_at(position),)) for position in range(done, total)]
    timing = LegTiming(queue_s=0.25, decode_s=2.0, transfer_s=0.125, transfer_bytes=7)
    chunks[-1] = msgspec.structs.replace(
        chunks[-1], finish_reason=FinishReason.LENGTH, usage=usage, timing=timing
    )
    return chunks


@dataclass
class Driver:
    """Carries out actions at once, checks what must always hold, and answers legs one chunk at a time."""

    flow: RequestFlow
    now_s: float = 0.0
    pools: dict[Role, list[str]] = field(default_factory=dict)
    legs: dict[Role, list[GenerateChunk]] = field(default_factory=dict)
    sent: list[Send] = field(default_factory=list)
    emitted: list[GenerateChunk] = field(default_factory=list)
    active: Counter[tuple[str, str]] = field(default_factory=Counter)
    running: dict[Role, tuple[str, str]] = field(default_factory=dict)
    held: set[tuple[str, str]] = field(default_factory=set)
    migrations: int = 0
    error: DynamoError | None = None
    rng: Random = field(default_factory=lambda: Random(0))
    route_takes_s: float = 0.0

    def act(self, actions: list[Action]) -> None:
        pending = list(actions)
        while pending:
            match pending.pop(0):
                case Route() as ask:
                    names = [n for n in self.pools.get(ask.pool, []) if WorkerId(n) not in ask.excluded]
                    self.now_s += self.route_takes_s
                    if names:
                        pending += self.flow.routed(ask.pool, worker(self.rng.choice(names)), self.now_s)
                    else:
                        pending += self.flow.not_routed(ask.pool, Unavailable("nobody"))
                case Send(leg, target, leg_request) as send:
                    assert leg not in self.legs
                    assert leg_request.role is leg
                    self.sent.append(send)
                    self.legs[leg] = leg_chunks(leg_request, self.flow.config.connector)
                    self.running[leg] = (target.worker_id, leg_request.request_id)
                case CancelLeg(leg):
                    del self.legs[leg]
                case ReleaseBlocks(worker_id, request_id):
                    self.held.discard((worker_id, request_id))
                case Observe(_, Routed() as fact):
                    self.active[fact.worker_id, fact.request_id] += 1
                case Observe(_, Freed() as fact):
                    self.active[fact.worker_id, fact.request_id] -= 1
                case Emit(chunk):
                    assert not (self.emitted and self.emitted[-1].finish_reason)
                    assert chunk.finish_reason is not FinishReason.HANDOVER
                    assert chunk.kv_transfer is None
                    self.emitted.append(chunk)
                case Migrated():
                    self.migrations += 1
                case Fail(error):
                    assert self.error is None
                    self.error = error

    def step(self, leg: Role) -> None:
        chunk = self.legs[leg].pop(0)
        if not self.legs[leg]:
            del self.legs[leg]
        is_sequential = isinstance(self.flow.config.connector, PassOn)
        if is_sequential and chunk.finish_reason is FinishReason.HANDOVER:
            self.held.add(self.running[leg])
        if leg is Role.DECODE:  # it has fetched what was held
            self.held.clear()
        self.act(self.flow.received(leg, chunk, self.now_s))

    def fail(self, leg: Role, error: DynamoError) -> None:
        del self.legs[leg]
        self.act(self.flow.failed(leg, error))

    def run(self) -> None:
        while self.legs:
            self.step(min(self.legs))

    @property
    def output(self) -> list[int]:
        return [token for chunk in self.emitted for token in chunk.token_ids]

    def check_over(self) -> None:
        assert self.flow.state in OVER
        assert not self.legs
        assert not +self.active, "a worker is still counted as busy"
        assert not -self.active, "a worker was freed twice"
        assert not self.held, "a prefill worker holds blocks that nobody will fetch"


def started(connector: KVConnector | None, **pools: list[str]) -> Driver:
    driver = Driver(RequestFlow(request(), FlowConfig(connector=connector)))
    driver.pools = {Role(name): names for name, names in pools.items()}
    driver.act(driver.flow.start())
    return driver


def legs_of(driver: Driver) -> list[str]:
    return [f"{send.leg}@{send.worker.worker_id}" for send in driver.sent]


def test_aggregated() -> None:
    driver = started(None, aggregated=["a"])
    driver.run()
    assert driver.output == expected(5)
    assert driver.emitted[-1].usage == Usage(3, 5, 0)
    assert legs_of(driver) == ["aggregated@a"]
    driver.check_over()


@pytest.mark.parametrize("connector", [PassOn(), RecomputeFirst(), Meet()])
def test_disaggregated_emits_each_token_once(connector: KVConnector) -> None:
    driver = started(connector, prefill=["p"], decode=["d"])
    driver.run()
    assert driver.output == expected(5)
    assert legs_of(driver) == ["prefill@p", "decode@d"]
    driver.check_over()


def test_the_last_chunk_says_where_the_time_of_all_legs_went() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d"])
    driver.run()
    *others, last = driver.emitted
    assert last.timing == LegTiming(
        queue_s=0.75, prefill_s=1.0, decode_s=2.0, transfer_s=0.125, transfer_bytes=7
    )
    assert not any(chunk.timing for chunk in others)


def test_a_dropped_first_token_leaves_its_logprob() -> None:
    driver = started(RecomputeFirst(), prefill=["p"], decode=["d"])
    driver.run()
    assert driver.emitted[0].logprobs == (TokenLogprobs(-0.5),)


def test_sequential_passes_through_every_state() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d"])
    seen = [driver.flow.state]
    while driver.legs:
        driver.step(min(driver.legs))
        seen.append(driver.flow.state)
    assert list(dict.fromkeys(seen)) == [
        FlowState.PREFILLING,
        FlowState.TRANSFERRING,
        FlowState.DECODING,
        FlowState.DONE,
    ]


def test_prefill_may_finish_the_request() -> None:
    driver = Driver(RequestFlow(request(max_tokens=1), FlowConfig(connector=PassOn())))
    driver.pools = {Role.PREFILL: ["p"], Role.DECODE: ["d"]}
    driver.act(driver.flow.start())
    driver.run()
    assert driver.output == expected(1)
    assert legs_of(driver) == ["prefill@p"]
    driver.check_over()


def test_decode_prefills_locally_without_a_prefill_worker() -> None:
    driver = started(PassOn(), decode=["d"])
    driver.run()
    assert legs_of(driver) == ["aggregated@d"]
    assert driver.output == expected(5)


def test_without_local_prefill_the_request_fails() -> None:
    driver = started(Meet(), decode=["d"])
    assert isinstance(driver.error, Unavailable)
    driver.check_over()


def test_a_dead_decode_worker_costs_no_token() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d1", "d2"])
    for _ in range(4):
        driver.step(min(driver.legs))
    before = driver.output
    assert len(before) == 3
    driver.fail(Role.DECODE, EngineFailed("killed"))
    retried = driver.sent[-1]
    assert retried.leg is Role.PREFILL
    assert unpack_tokens(retried.request.generated) == before
    assert retried.request.request_id != "r"
    driver.run()
    assert driver.output == expected(5)
    assert driver.sent[1].worker != driver.sent[-1].worker
    assert driver.migrations == 1
    driver.check_over()


def test_a_failed_hand_over_blames_the_prefill_side() -> None:
    driver = started(PassOn(), prefill=["p1"], decode=["d"])
    driver.step(Role.PREFILL)
    driver.step(Role.PREFILL)
    driver.fail(Role.DECODE, TransferError("peer died"))
    driver.run()
    assert legs_of(driver) == ["prefill@p1", "decode@d", "aggregated@d"]
    assert driver.output == expected(5)


def test_an_expired_ticket_means_prefill_again_on_the_same_worker() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d"])
    driver.step(Role.PREFILL)
    driver.step(Role.PREFILL)
    driver.fail(Role.DECODE, TicketExpired("late"))
    assert legs_of(driver)[-1] == "prefill@p"
    driver.run()
    assert driver.output == expected(5)


def test_only_a_request_that_has_begun_waits_for_a_worker() -> None:
    flow = RequestFlow(request(), FlowConfig(connector=PassOn()))
    (first,) = flow.start()
    assert isinstance(first, Route)
    assert not first.can_wait
    flow.routed(Role.PREFILL, worker("p0"), 0.0)
    sent = msgspec.structs.replace(request(), role=Role.PREFILL)
    actions = [
        action for chunk in leg_chunks(sent, PassOn()) for action in flow.received(Role.PREFILL, chunk, 0.0)
    ]
    (second,) = [action for action in actions if isinstance(action, Route)]
    assert (second.pool, second.can_wait) == (Role.DECODE, True)


def test_a_ticket_that_waited_too_long_is_not_sent() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d"])
    driver.step(Role.PREFILL)
    driver.route_takes_s = TTL_S
    driver.step(Role.PREFILL)
    driver.route_takes_s = 0.0
    driver.run()
    assert legs_of(driver) == ["prefill@p", "prefill@p", "decode@d"]
    assert driver.output == expected(5)
    driver.check_over()


def test_the_ticket_carries_the_time_that_is_left() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d"])
    driver.step(Role.PREFILL)
    driver.route_takes_s = 10.0
    driver.step(Role.PREFILL)
    ticket = driver.sent[-1].request.kv_transfer
    assert ticket is not None
    assert ticket.ttl_s == TTL_S - 10.0


def test_a_full_decode_worker_does_not_cost_the_prefill() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d1", "d2"])
    driver.step(Role.PREFILL)
    driver.step(Role.PREFILL)
    driver.fail(Role.DECODE, Overloaded("full"))
    assert [leg.split("@")[0] for leg in legs_of(driver)] == ["prefill", "decode", "decode"]
    driver.run()
    assert driver.output == expected(5)
    driver.check_over()


def test_when_every_decode_worker_is_full_the_client_hears_it() -> None:
    driver = started(PassOn(), prefill=["p"], decode=["d"])
    driver.step(Role.PREFILL)
    driver.step(Role.PREFILL)
    driver.fail(Role.DECODE, Overloaded("full"))
    assert isinstance(driver.error, Overloaded)
    driver.check_over()


def test_what_a_client_did_wrong_is_not_retried() -> None:
    driver = started(None, aggregated=["a", "b"])
    driver.fail(Role.AGGREGATED, InvalidRequest("too long", param="prompt"))
    assert isinstance(driver.error, InvalidRequest)
    assert driver.migrations == 0
    driver.check_over()


def test_overload_is_reported_as_such() -> None:
    driver = started(None, aggregated=["a"])
    driver.fail(Role.AGGREGATED, Overloaded("full"))
    assert isinstance(driver.error, Overloaded)
    driver.check_over()


@pytest.mark.parametrize("leg", [Role.PREFILL, Role.DECODE])
def test_a_rendezvous_fails_as_one(leg: Role) -> None:
    driver = started(Meet(), prefill=["p1", "p2"], decode=["d1", "d2"])
    driver.fail(leg, EngineFailed("killed"))
    driver.run()
    assert driver.output == expected(5)
    assert len(driver.sent) == 4
    driver.check_over()


def test_each_attempt_meets_in_a_room_of_its_own() -> None:
    driver = started(Meet(), prefill=["p1", "p2"], decode=["d1"])
    driver.fail(Role.DECODE, TransferError("the other leg did not come"))
    driver.run()
    assert driver.output == expected(5)
    tickets = [send.request.kv_transfer for send in driver.sent]
    assert tickets[0] == tickets[1] != tickets[2] == tickets[3]
    prefill_workers = [send.worker.worker_id for send in driver.sent if send.leg is Role.PREFILL]
    assert set(prefill_workers) == {"p1", "p2"}, "whom decode could not fetch from is not asked again"


def test_once_decode_speaks_a_rendezvous_needs_prefill_no_more() -> None:
    driver = started(Meet(), prefill=["p1", "p2"], decode=["d1", "d2"])
    driver.step(Role.DECODE)
    driver.fail(Role.PREFILL, EngineFailed("killed"))
    driver.run()
    assert driver.output == expected(5)
    assert len(driver.sent) == 2
    driver.check_over()


def test_late_answers_are_ignored() -> None:
    driver = started(None, aggregated=["a"])
    driver.act(driver.flow.cancel())
    assert driver.flow.received(Role.AGGREGATED, GenerateChunk((1,)), 0.0) == []
    assert driver.flow.failed(Role.AGGREGATED, EngineFailed("x")) == []
    assert driver.flow.cancel() == []
    assert driver.flow.routed(Role.AGGREGATED, worker("a"), 0.0) == []


ERRORS = st.sampled_from(
    [EngineFailed("x"), Overloaded("x"), TransferError("x"), TicketExpired("x"), InvalidRequest("x")]
)


@settings(max_examples=300)
@given(
    connector=st.sampled_from([None, PassOn(), RecomputeFirst(), Meet()]),
    pools=st.fixed_dictionaries(
        {role: st.lists(st.sampled_from(["w1", "w2", "w3"]), unique=True) for role in Role}
    ),
    max_tokens=st.integers(1, 6),
    data=st.data(),
)
def test_whatever_happens_tokens_are_right_and_nothing_leaks(
    connector: KVConnector | None, pools: dict[Role, list[str]], max_tokens: int, data: st.DataObject
) -> None:
    driver = Driver(RequestFlow(request(max_tokens), FlowConfig(connector=connector, max_attempts=3)))
    driver.pools = {role: [f"{role}-{name}" for name in names] for role, names in pools.items()}
    driver.act(driver.flow.start())
    while driver.legs:
        leg = data.draw(st.sampled_from(sorted(driver.legs)))
        match data.draw(st.sampled_from(["step"] * 6 + ["fail", "cancel"])):
            case "step":
                driver.step(leg)
            case "fail":
                driver.fail(leg, data.draw(ERRORS))
            case "cancel":
                driver.act(driver.flow.cancel())
        assert driver.output == expected(len(driver.output))
    driver.check_over()
    assert driver.flow.num_attempts <= 3
    if driver.flow.state is FlowState.DONE:
        assert driver.output == expected(max_tokens)
        assert driver.emitted[-1].finish_reason is FinishReason.LENGTH
    else:
        assert (driver.error is not None) == (driver.flow.state is FlowState.FAILED)


def test_a_leg_goes_to_the_rank_that_was_chosen() -> None:
    flow = RequestFlow(request(), FlowConfig())
    flow.start()
    *_, send = flow.routed(Role.AGGREGATED, worker("a"), 0.0, dp_rank=3)
    assert isinstance(send, Send)
    assert send.request.dp_rank == 3
