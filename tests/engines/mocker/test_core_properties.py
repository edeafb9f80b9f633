"""Whatever is added, aborted and stepped: the books add up, everybody is served, events tell the truth."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo_sdk.engines.mocker import MockerCore, StepResult
from dynamo_sdk.types import FinishReason, KVEventBatch, Role

from .test_core import cached_blocks, snapshot_blocks
from .virtual import ask, decode_leg, new_core, run

TOKENS = st.integers(0, 3)  # few, so that prompts share prefixes


class CoreMachine(RuleBasedStateMachine):
    """A listener and a client beside the core, who believe only what they are told."""

    core: MockerCore

    @initialize(
        num_blocks=st.integers(6, 24),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(6, 40),
        enable_prefix_caching=st.booleans(),
        enable_growth_reserve=st.booleans(),
        kv_bytes_per_token=st.sampled_from([0, 10**6]),
    )
    def begin(self, **config: object) -> None:
        self.core = new_core(block_size=2, vocab_size=8, **config)
        self.num_blocks = config["num_blocks"]
        self.now_s = 0.0
        self.num_requests = 0
        self.lengths: dict[str, tuple[int, FinishReason]] = {}  # of live requests: tokens and end expected
        self.seen: dict[str, int] = {}
        self.admitted: set[str] = set()
        self.batches: list[KVEventBatch] = []

    def _add(
        self, tokens: list[int], max_tokens: int, role: Role, *, has_ticket: bool, priority: int
    ) -> None:
        request_id = f"r{self.num_requests}"
        self.num_requests += 1
        if role is Role.DECODE and has_ticket:
            self.core.add(decode_leg(request_id, tokens, 1, max_tokens + 1), self.now_s)
        else:
            self.core.add(ask(request_id, tokens, max_tokens, role=role, priority=priority), self.now_s)
        is_handover = role is Role.PREFILL and max_tokens > 1
        reason = FinishReason.HANDOVER if is_handover else FinishReason.LENGTH
        self.lengths[request_id] = (1 if is_handover else max_tokens, reason)

    @rule(
        tokens=st.lists(TOKENS, min_size=1, max_size=6),
        max_tokens=st.integers(1, 5),
        role=st.sampled_from(Role),
        has_ticket=st.booleans(),
        priority=st.integers(0, 1),
    )
    def add(self, tokens: list[int], max_tokens: int, role: Role, has_ticket: bool, priority: int) -> None:
        self._add(tokens, max_tokens, role, has_ticket=has_ticket, priority=priority)

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.lengths)))
        assert self.core.abort(request_id)
        del self.lengths[request_id]
        self.seen.pop(request_id, None)

    @rule()
    def step(self) -> None:
        result = self.core.step(self.now_s)
        if result is None:
            arrival_s = self.core.next_transfer_s
            assert arrival_s is not None or not self.lengths, "requests are left and nothing will ever happen"
            self.now_s = max(self.now_s, arrival_s or 0.0)
            return
        self._check(result)
        self.now_s += result.duration_s

    @rule()
    def run_dry(self) -> None:
        for _ in range(1000):
            if not self.lengths:
                break
            self.step()
        assert not self.lengths, "somebody is never served"
        assert self.core.load(0.0).num_free_blocks == self.num_blocks

    def _check(self, result: StepResult) -> None:
        assert result.duration_s > 0
        for admission in result.admitted:
            assert admission.request_id not in self.admitted, "admitted twice"
            self.admitted.add(admission.request_id)
        if result.events is not None:
            self.batches.append(result.events)
        for update in result.updates:
            request_id = update.request_id
            length, reason = self.lengths[request_id]  # nobody who left is heard of again
            assert request_id in self.admitted
            self.seen[request_id] = self.seen.get(request_id, 0) + 1
            is_last = self.seen[request_id] == length
            assert update.finish_reason is (reason if is_last else None)
            if is_last:
                del self.lengths[request_id]

    @invariant()
    def books_add_up(self) -> None:
        if self.num_requests:
            self.core.check_integrity()
            assert self.core.has_requests == bool(self.lengths)

    @invariant()
    def listeners_know_the_cache(self) -> None:
        if self.num_requests:
            if (batch := self.core.take_kv_events()) is not None:
                self.batches.append(batch)
            assert cached_blocks(self.batches) == snapshot_blocks(self.core)


CoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCore = CoreMachine.TestCase


@given(
    st.lists(
        st.tuples(st.floats(0, 300), st.lists(TOKENS, min_size=1, max_size=12), st.integers(1, 8)),
        max_size=12,
    ),
    st.integers(20, 40),
)
@settings(max_examples=60)
def test_the_same_workload_gives_the_same_history(
    workload: list[tuple[float, list[int], int]], num_blocks: int
) -> None:
    arrivals = [
        (at_ms, ask(f"r{number}", tokens, max_tokens))
        for number, (at_ms, tokens, max_tokens) in enumerate(sorted(workload))
    ]
    histories: list[list[StepResult]] = [[], []]
    for history in histories:
        run(new_core(block_size=2, num_blocks=num_blocks), arrivals, steps=history)
    assert histories[0] == histories[1]
