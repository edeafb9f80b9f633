"""``MockerCore``: one rank of a simulated engine in virtual time. No loop, no clock, no randomness.

Whoever drives it keeps the time::

    core.add(request, now_s)
    result = core.step(now_s)            # None: nothing to run before something is added, or a transfer ends
    now_s += result.duration_s           # the step takes this long;
    ...                                  # its tokens, events and metrics count from here on

``step`` does all bookkeeping at once: what is added or aborted while the step "runs" meets the scheduler
as the step leaves it, and takes part in the next one at the earliest.

Who needs no token at its moment may ask for many steps at once::

    run = core.plan_run(now_s)           # None: ``step``
    result = core.end_run(len(run.ends_s))  # at the end of the last one, or earlier, of fewer of them
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import CacheKey, KVTiersStatistics
from dynamo_sdk.kv import OnboardingRule
from dynamo_sdk.scheduling import (
    ScheduledSequence,
    Scheduler,
    SchedulerConfig,
    SequenceUpdate,
    Step,
)
from dynamo_sdk.types import (
    FinishReason,
    ForwardPassMetrics,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
    Role,
)

from .tier import TierModel
from .tier_statistics import tiers_statistics
from .tiers import SimTiers
from .timing import StepWork, TimingModel
from .tokens import TokenSource
from .transfers import TransferCost, Transfers


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A request's first step, or the first after a preemption. ``num_cached_tokens``: of its prompt, found in
    the cache, 0 where KV was fetched. ``transfer_s``, ``transfer_bytes``: what its KV took to get here.
    ``num_loaded_tokens``: of those that were found, the ones that came from lower tiers; ``load_s``: how long
    it waited for them."""

    request_id: str
    num_cached_tokens: int = 0
    transfer_s: float = 0.0
    transfer_bytes: int = 0
    num_loaded_tokens: int = 0
    load_s: float = 0.0
    load_bytes: int = 0


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """One step, all of which becomes true ``duration_s`` after ``started_s``.

    ``updates``: the new tokens. ``admitted``: requests of which this is the first step. ``preempted``: those
    that lost their blocks; ``readmitted``: those that have some again. ``events`` is None when the prefix
    cache did not change.
    """

    started_s: float
    duration_s: float
    updates: tuple[SequenceUpdate, ...]
    admitted: tuple[Admission, ...]
    events: KVEventBatch | None
    metrics: ForwardPassMetrics
    preempted: tuple[str, ...] = ()
    readmitted: tuple[Admission, ...] = ()


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that come one after the other, each of ``num_decode_requests`` decodes and nothing else.
    ``ends_s``: when each is over. Nobody sees anything of them before the end of the last."""

    num_decode_requests: int
    ends_s: tuple[float, ...]


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What is true at the end of the steps that were asked for. ``updates``: the last token of each request
    that is over; ``events``: as in ``StepResult``."""

    updates: tuple[SequenceUpdate, ...]
    events: KVEventBatch | None


class MockerCore:
    """The scheduler of ``dynamo_sdk.scheduling`` with a clockwork in the place of a model."""

    def __init__(
        self,
        config: SchedulerConfig,
        tokens: TokenSource,
        timing: TimingModel,
        transfer_cost: TransferCost,
        *,
        tiers: Sequence[TierModel] = (),
        onboarding: OnboardingRule = "measured",
        speedup_ratio: float = 1.0,
        dp_rank: int = 0,
    ) -> None:
        """``tiers``: what is kept beyond the device, fastest first; ``onboarding``: what of it is loaded."""
        self.dp_rank = dp_rank
        self._scheduler = Scheduler(config)
        self._tokens = tokens
        self._timing = timing
        self._speedup_ratio = speedup_ratio
        self._num_capacity_tokens = config.num_blocks * config.block_size
        self._transfers = Transfers(self._scheduler, transfer_cost, speedup_ratio=speedup_ratio)
        self.tiers: SimTiers | None = None
        if tiers:
            block_bytes = config.block_size * transfer_cost.bytes_per_token
            self.tiers = SimTiers(tiers, self._scheduler, block_bytes=block_bytes, onboarding=onboarding)
        self._run_ends_s: tuple[float, ...] = ()  # of the run that was planned
        self._admissions: dict[str, Admission] = {}  # of requests that have not been in a step yet
        self._arrived: set[str] = set()  # of these, whose KV is here and who run already
        self._preempted: set[str] = set()
        self._num_batches = 0

    # -- requests in and out

    def add(self, request: GenerateRequest, now_s: float, keys: Sequence[CacheKey] | None = None) -> None:
        """Queue a request. A decode leg with a ticket first waits for blocks and the transfer of its KV; a
        prefill leg gives its blocks back when it ends (they stay cached). ``keys``: of its leading full
        blocks, None = from its tokens. Raises ``InvalidRequest``."""
        if request.role is Role.DECODE and request.kv_transfer is not None:
            self._transfers.add(request, now_s, keys)
            return
        if request.request_id in self._transfers:
            raise InvalidRequest(
                f"request id {request.request_id!r} is already in use on this worker", param="request_id"
            )
        if self.tiers is None:
            self._scheduler.add(request, keys)
        else:
            self.tiers.add(request, keys, now_s)
        self._admissions[request.request_id] = Admission(request_id=request.request_id)

    def abort(self, request_id: str) -> bool:
        """Forget a request in any state, its blocks free at once; False if there is none of this id."""
        self._admissions.pop(request_id, None)
        self._preempted.discard(request_id)
        self._arrived.discard(request_id)
        if self.tiers is not None:
            self.tiers.cancel(request_id)
        return self._transfers.cancel(request_id) or self._scheduler.abort(request_id)

    # -- steps

    def step(self, now_s: float) -> StepResult | None:
        """Run one forward pass that starts at ``now_s``. None = there is nothing that can run now.

        Raises ``ValueError`` when the timing model gives no duration, and whatever it raises.
        """
        for transfer in self._transfers.advance(now_s) if self._transfers else ():
            request_id = transfer.request.request_id
            self._admissions[request_id] = Admission(
                request_id=request_id, transfer_s=transfer.duration_s, transfer_bytes=transfer.num_bytes
            )
            self._arrived.add(request_id)
        step = self._scheduler.schedule() if self.tiers is None else self._schedule(self.tiers, now_s)
        if not step.sequences:
            return None
        readmitted = self._take_readmissions(step) if self._preempted or step.preempted else ()
        next_id = self._tokens.next_id
        sampled = {
            part.request.request_id: next_id(part.request.sampling, part.num_output_tokens)
            for part in step.sequences
            if part.is_sampling
        }
        updates = self._scheduler.complete(step, sampled)
        for update in updates:
            if update.finish_reason is FinishReason.HANDOVER:
                self._scheduler.release(update.request_id)
        duration_s = self._duration_s(step)
        if self.tiers is not None:
            self.tiers.computed(step, now_s + duration_s, duration_s)
        return StepResult(
            started_s=now_s,
            duration_s=duration_s,
            updates=updates,
            admitted=self._take_admissions(step) if self._admissions else (),
            events=self.take_kv_events(),
            metrics=self._metrics(step, now_s + duration_s, duration_s),
            preempted=step.preempted,
            readmitted=readmitted,
        )

    def _schedule(self, tiers: SimTiers, now_s: float) -> Step:
        """Those whose KV has arrived are in it; those who want theirs loaded begin to wait."""
        for load in tiers.advance(now_s):
            assert load.request_id is not None, "nobody waits for a probe"
            self._arrived.add(load.request_id)
            if (admission := self._admissions.get(load.request_id)) is not None:
                self._admissions[load.request_id] = msgspec.structs.replace(
                    admission,
                    num_loaded_tokens=load.num_blocks * self._scheduler.config.block_size,
                    load_s=load.ends_s - load.asked_s,
                    load_bytes=load.num_bytes,
                )
        return self._scheduler.schedule(lambda onboarding: tiers.begin(onboarding, now_s))

    def plan_run(self, now_s: float) -> PlannedRun | None:
        """The steps from ``now_s`` on that pass unseen, and the first that does not; None = ask ``step``.

        Whatever is added or aborted meets the step under way as in ``step``: ``end_run`` after that one.
        """
        transfers, tiers = self._transfers, self.tiers
        if self._arrived:  # left out of the last step; its first one is of interest
            return None
        arrival_s = transfers.next_arrival_s if transfers else None
        if transfers and (transfers.num_waiting or (arrival_s is not None and arrival_s <= now_s)):
            return None
        if tiers is not None:
            if (load_s := tiers.next_load_s) is not None and load_s <= now_s:
                return None
            tiers.advance(now_s)
            arrival_s = _earlier(arrival_s, tiers.next_s)
        plan = self._scheduler.plan_run(self._tokens.next_ids)
        if plan is None:
            return None
        ends_s: list[float] = []
        num_requests, num_kv_tokens = plan.num_decode_requests, plan.num_decode_kv_tokens
        for _ in range(plan.num_steps):
            now_s += self._work_s(0, 0, num_requests, num_kv_tokens)
            ends_s.append(now_s)
            if arrival_s is not None and now_s >= arrival_s:
                break
            if tiers is not None and tiers.has_events:
                break
            num_kv_tokens += num_requests
        self._run_ends_s = tuple(ends_s)
        return PlannedRun(num_decode_requests=num_requests, ends_s=self._run_ends_s)

    def end_run(self, num_steps: int) -> RunResult:
        """The first ``num_steps`` of what was planned are made. Raises ``RuntimeError`` without a plan."""
        updates = self._scheduler.end_run(num_steps)
        if self.tiers is not None:
            self.tiers.filled(self._run_ends_s[num_steps - 1])
        return RunResult(updates=updates, events=self.take_kv_events())

    def record_kv_events(self, is_wanted: bool) -> None:
        """Whether there are KV events from now on. By default there are."""
        self._scheduler.pool.record_events(is_wanted)
        if self.tiers is not None:
            self.tiers.record_events(is_wanted)

    def take_kv_events(self) -> KVEventBatch | None:
        """What changed in the prefix cache outside of steps; None = nothing."""
        events = self._scheduler.pool.take_events() if self.tiers is None else self.tiers.take_events()
        if not events:
            return None
        batch = KVEventBatch(sequence=self._num_batches, dp_rank=self.dp_rank, events=events)
        self._num_batches += 1
        return batch

    # -- facts

    @property
    def has_requests(self) -> bool:
        """Something runs, waits or is on its way."""
        return self._scheduler.has_work or bool(self._transfers)

    @property
    def next_transfer_s(self) -> float | None:
        """When something is next that arrives, here or in a tier: time to call ``step`` again if it gave
        None."""
        arrival_s = self._transfers.next_arrival_s
        return arrival_s if self.tiers is None else _earlier(arrival_s, self.tiers.next_s)

    def load(self, at_s: float) -> LoadSnapshot:
        """How busy this rank is. Requests whose KV is on its way count as waiting."""
        load = self._scheduler.load(at_s)
        if self.tiers is not None:
            load = msgspec.structs.replace(load, block_load_times=self.tiers.block_load_times(at_s))
        if not self._transfers:
            return load
        return msgspec.structs.replace(load, num_waiting=load.num_waiting + len(self._transfers))

    def tier_statistics(self) -> KVTiersStatistics | None:
        """What the tiers hold and did; None without any."""
        return None if self.tiers is None else tiers_statistics(self.tiers)

    @property
    def max_length(self) -> int:
        """The longest sequence that can run here, prompt and output together."""
        return self._scheduler.config.max_length

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._transfers)

    def kv_snapshot(self) -> tuple[KVEventBatch | None, KVEventBatch]:
        """What changed since it was last taken (``take_kv_events``), and what rebuilds the prefix cache as
        that leaves it."""
        tiers = () if self.tiers is None else self.tiers.snapshot()
        changes = self.take_kv_events()
        events = self._scheduler.pool.snapshot() + tiers
        return changes, KVEventBatch(sequence=self._num_batches - 1, dp_rank=self.dp_rank, events=events)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(blocks)."""
        self._scheduler.check_integrity()
        self._transfers.check_integrity()
        if self.tiers is not None:
            self.tiers.check_integrity()
        for request_id in self._admissions:
            assert self._scheduler.state_of(request_id) is not None, f"{request_id} is admitted and gone"

    # -- how

    def _duration_s(self, step: Step) -> float:
        return self._work_s(
            step.num_prefill_requests,
            step.num_prefill_tokens,
            step.num_decode_requests,
            step.num_decode_kv_tokens,
        )

    def _work_s(
        self,
        num_prefill_requests: int,
        num_prefill_tokens: int,
        num_decode_requests: int,
        num_decode_kv_tokens: int,
    ) -> float:
        work = StepWork(
            num_prefill_requests=num_prefill_requests,
            num_prefill_tokens=num_prefill_tokens,
            num_decode_requests=num_decode_requests,
            num_decode_kv_tokens=num_decode_kv_tokens,
            num_capacity_tokens=self._num_capacity_tokens,
        )
        duration_s = self._timing.step_s(work) / self._speedup_ratio
        if not 0.0 <= duration_s < inf:
            raise ValueError(f"{type(self._timing).__name__} gave {duration_s} seconds for {work}")
        return duration_s

    def _take_admissions(self, step: Step) -> tuple[Admission, ...]:
        pop = self._admissions.pop
        found = [(pop(part.request.request_id, None), part) for part in step.sequences]
        self._arrived.difference_update([part.request.request_id for part in step.sequences])
        return tuple([_with_cached(admission, part) for admission, part in found if admission is not None])

    def _take_readmissions(self, step: Step) -> tuple[Admission, ...]:
        """Before this step's own preemptions count: who is preempted is not in the step."""
        back = [part for part in step.sequences if part.request.request_id in self._preempted]
        self._preempted.difference_update([part.request_id for part in back])
        self._preempted.update(step.preempted)
        return tuple([_with_cached(Admission(request_id=part.request_id), part) for part in back])

    def _metrics(self, step: Step, at_s: float, wall_s: float) -> ForwardPassMetrics:
        load = self.load(at_s)
        return ForwardPassMetrics(
            step=step.number,
            at_s=at_s,
            wall_s=wall_s,
            num_prefill_requests=step.num_prefill_requests,
            num_prefill_tokens=step.num_prefill_tokens,
            num_decode_requests=step.num_decode_requests,
            num_decode_kv_tokens=step.num_decode_kv_tokens,
            num_preempted=len(step.preempted),
            num_waiting=load.num_waiting,
            num_waiting_tokens=load.num_waiting_tokens,
            num_free_blocks=load.num_free_blocks,
        )


def _earlier(one_s: float | None, other_s: float | None) -> float | None:
    if one_s is None or other_s is None:
        return other_s if one_s is None else one_s
    return min(one_s, other_s)


def _with_cached(admission: Admission, part: ScheduledSequence) -> Admission:
    """What a prompt's first chunk leaves out was cached. A leg that goes on from fetched KV found nothing."""
    if part.request.role is Role.DECODE and part.request.kv_transfer is not None:
        return admission
    return msgspec.structs.replace(
        admission, num_cached_tokens=min(part.start, part.request.num_prompt_tokens)
    )
