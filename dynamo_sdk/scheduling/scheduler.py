"""``Scheduler``: continuous batching for one worker, with chunked prefill, prefix cache and preemption.

A request's life. Blocks are held in the states marked *::

    from       event                                              to
    ---------  -------------------------------------------------  ---------
    (none)     add                                                WAITING
    (none)     reserve, when blocks and a slot are there          RESERVED*
    RESERVED*  add of the same request with role DECODE           RUNNING*
    RESERVED*  release, abort                                     gone
    WAITING    schedule, when blocks and a slot are there         RUNNING*
    WAITING    the same or start_loads, its KV is in lower tiers  LOADING*
    WAITING    abort                                              gone
    LOADING*   end_onboarding                                     RUNNING*
    LOADING*   abort                                              gone
    RUNNING*   schedule, when an earlier request lacks a block    WAITING
    RUNNING*   complete, the token ended it                       gone
    RUNNING*   complete, role PREFILL and the token did not       HELD*
    RUNNING*   abort                                              gone
    HELD*      release, abort                                     gone

One engine step is ``schedule`` -> forward pass -> ``complete``, strictly in turn; every other method may
be called at any moment, also between the two. Blocks of a request that is aborted while its step runs
return to the pool with that step's ``complete``, so that nobody else is given memory that is still
being written.

Who needs no token at its moment, a simulation, may take many steps in which everybody decodes at once:
``plan_run`` -> ``end_run`` (see ``decode_run``), in the place of a ``schedule`` and its ``complete``.

Why nothing waits for ever: a request owns a slot, and blocks for all tokens known when it was admitted;
a step has a token for each slot; the first running request in order can take blocks from all later ones
(they start again, their output kept); and one request alone always fits. Blocks that are LOADING, RESERVED or
HELD come back when their holders say so; until then a running request that lacks a block is left out of
steps, and nobody is admitted before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dynamo_sdk.errors import TransferError
from dynamo_sdk.interfaces.block_memory import BlockReservation
from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.kv.block_pool import BlockPool
from dynamo_sdk.types.loads import LoadSnapshot
from dynamo_sdk.types.outputs import FinishReason
from dynamo_sdk.types.requests import GenerateRequest, Role

from .admission import Admission
from .batch import Batch
from .blocks import SequenceBlocks
from .decode_run import DecodeRun, NextTokens
from .sequence import Sequence, SequenceState, root_of
from .step import Onboarding, RunPlan, SchedulerConfig, SequenceUpdate, Step, WantsLoad
from .table import SequenceTable


class Scheduler:
    """The order is (priority, arrival), smaller first. Not thread-safe."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self._block_size = config.block_size
        self._blocks = SequenceBlocks(config)
        self._table = SequenceTable(config)
        self._waiting, self._running = self._table.waiting, self._table.running
        self._admission = Admission(config, self._blocks, self._table)
        self._num_steps = 0
        self._step: Step | None = None  # the step between schedule and complete,
        self._in_flight: list[Sequence] = []  # and its sequences, some of them perhaps gone
        self._starved: Sequence | None = None  # was left out of the last step for lack of a block
        self._is_refusing = False  # all who wait were refused, and nothing changed for the better since
        self._run: DecodeRun | None = None  # its requests lack the tokens of its steps

    # -- requests in and out

    def add(
        self,
        request: GenerateRequest,
        keys: Iterable[CacheKey] | None = None,
        *,
        is_onboarding: bool = False,
    ) -> None:
        """Queue a request, or continue from its reservation. ``keys``: see ``open_sequence``.
        ``is_onboarding``: when it is admitted, wait for KV from lower tiers (``Step.onboarding``).

        Raises ``InvalidRequest`` (too long, id in use), ``ValueError`` when its tokens are not those that
        were reserved for, and ``TransferError`` when its adapter or salt is not.
        """
        sequence = self._table.get(request.request_id)
        if sequence is not None and sequence.state is SequenceState.RESERVED and request.role is Role.DECODE:
            self._continue_reserved(sequence, request)
            return
        self._table.add(self._table.open(request, SequenceState.WAITING, keys, is_onboarding=is_onboarding))
        self._is_refusing = False

    def reserve(
        self, request: GenerateRequest, keys: Iterable[CacheKey] | None = None
    ) -> BlockReservation | None:
        """Blocks and a slot for a request whose KV comes from elsewhere; None = not now, try after the next
        step or release. Raises ``InvalidRequest`` when it can never fit.

        Covers all tokens but the last one of ``generated``, or the whole prompt when nothing was generated.
        """
        sequence = self._table.open(request, SequenceState.RESERVED, keys)
        is_overtaking = len(self._waiting) > 0 and self._waiting[0].order < sequence.order
        num_filled = sequence.num_tokens - (1 if request.generated else 0)
        if self._is_starving or is_overtaking or not self._table.num_free_slots:
            return None
        if not self._admission.allocate(sequence, num_filled):
            return None
        num_cached_blocks = sequence.num_computed_tokens // self._block_size
        sequence.num_computed_tokens = sequence.num_tokens - 1
        self._table.add(sequence)
        return BlockReservation(block_ids=sequence.block_ids, num_cached_blocks=num_cached_blocks)

    def start_loads(self, wants_load: WantsLoad | None = None) -> tuple[Onboarding, ...]:
        """Who is first in the queue and waits for KV from lower tiers needs no step for that: it is LOADING
        from now on, where blocks and a slot are there. ``wants_load`` as in ``schedule``, which asks those
        again that it denied."""
        if self._is_starving or not self._waiting or not self._waiting[0].is_onboarding:
            return ()
        self._leave_run()
        num_loading = len(self._table.loading)
        self._admission.start_loads(self._table.num_free_slots, wants_load)
        return tuple(map(self._blocks.onboarding, self._table.loading[num_loading:]))

    def end_onboarding(self, request_id: str, num_blocks: int) -> None:
        """The first ``num_blocks`` of what ``Onboarding`` named are filled; the rest is computed. Who is not
        LOADING is left alone."""
        sequence = self._table.get(request_id)
        if sequence is None or sequence.state is not SequenceState.LOADING:
            return
        self._leave_run()
        self._blocks.loaded(sequence, num_blocks)
        self._table.move(sequence, SequenceState.RUNNING)
        self._is_refusing = False

    def abort(self, request_id: str) -> bool:
        """Forget a request in any state; False if there is none of this id. Nobody must be writing into the
        blocks of one that is LOADING or RESERVED any more."""
        sequence = self._table.get(request_id)
        if sequence is None:
            return False
        self._leave_run()
        self._forget(sequence)
        return True

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        """The blocks of a prefill leg that ended with ``HANDOVER``. ``KeyError`` if it is not held."""
        sequence = self._table[request_id]
        if sequence.state is not SequenceState.HELD:
            raise KeyError(request_id)
        return sequence.block_ids

    def release(self, request_id: str) -> None:
        """Give held or reserved blocks back. Idempotent; other requests are left alone."""
        sequence = self._table.get(request_id)
        if sequence is not None and sequence.state in (SequenceState.HELD, SequenceState.RESERVED):
            self.abort(request_id)

    # -- one step

    def schedule(self, wants_load: WantsLoad | None = None) -> Step:
        """Choose what the next forward pass computes. ``wants_load`` is asked of each request that is
        admitted, was added with ``is_onboarding`` and misses blocks; None = all of them wait to be loaded.

        Raises ``RuntimeError`` while a step is under way.
        """
        self._require_no_step()
        self._leave_run()
        batch = Batch(self.config.max_num_batched_tokens)
        prefilling: list[Sequence] = []
        self._starved = None
        self._is_refusing = False
        block_size = self._block_size
        for sequence in self._running:  # preemption shortens the queue, but only behind this one
            length = sequence.num_tokens
            if length - sequence.num_computed_tokens > 1:
                prefilling.append(sequence)
            elif length <= len(sequence.block_ids) * block_size or self._grow(sequence, batch.preempted):
                batch.add_last_token(sequence)
            else:
                self._starved = sequence
        if self._starved is None and not batch.preempted:
            num_loading = len(self._table.loading)
            self._admission.admit(prefilling, batch.budget, self._table.num_free_slots, wants_load)
            batch.onboarding = tuple(map(self._blocks.onboarding, self._table.loading[num_loading:]))
            self._is_refusing = len(self._waiting) > 0 and not prefilling
        for sequence in prefilling:
            batch.add_chunk(sequence)

        self._num_steps += 1
        step = batch.to_step(self._num_steps)
        if step.sequences:
            self._step, self._in_flight = step, batch.sequences
        return step

    def complete(self, step: Step, sampled: Mapping[str, int]) -> tuple[SequenceUpdate, ...]:
        """Take in what the forward pass of ``step`` did: ``sampled`` has a token for each of its sampling
        sequences that was not aborted meanwhile (``KeyError`` if not, and nothing changed).

        After a forward pass that failed: abort its requests, then ``complete(step, {})``.
        Raises ``RuntimeError`` when this is not the step under way.
        """
        if step is not self._step:
            if not step.sequences:
                return ()
            raise RuntimeError(f"step {step.number} is not under way")
        gone, in_flight = SequenceState.GONE, self._in_flight
        token_ids = [
            sampled[part.request.request_id] if part.is_sampling and sequence.state is not gone else None
            for sequence, part in zip(in_flight, step.sequences, strict=True)
        ]  # before anything changes
        self._step, self._in_flight = None, []
        block_size = self._block_size
        updates: list[SequenceUpdate] = []
        for sequence, part, token_id in zip(in_flight, step.sequences, token_ids, strict=True):
            if sequence.state is gone:
                self._blocks.free(sequence)
                self._is_refusing = False
                continue
            start = part.start
            num_computed_tokens = sequence.num_computed_tokens = start + part.num_tokens
            if num_computed_tokens // block_size > start // block_size:
                self._blocks.register_full(sequence, start // block_size)
                self._is_refusing = False  # they may need less now
            if token_id is not None:
                sequence.append(token_id)
                finish_reason = sequence.finish_reason()
                if finish_reason is not None:
                    self._finish(sequence, finish_reason)
                updates.append(sequence.update(finish_reason))
        return tuple(updates)

    # -- many steps at once

    def plan_run(self, next_tokens: NextTokens) -> RunPlan | None:
        """How many steps can go by, from now, until somebody sees something: the cache changes or a request
        ends with the last of them. The blocks for the first are taken. None = not now: ``schedule``.

        Raises ``RuntimeError`` while a step is under way.
        """
        self._require_no_step()
        if self._waiting and not self._is_refusing:
            return None
        if self._run is None:
            if not self._running or not all(s.is_just_decoding for s in self._running):
                return None
            self._run = DecodeRun(list(self._running), self._blocks, next_tokens)
        run = self._run
        num_steps = run.num_quiet_steps()
        if not num_steps:
            return None
        self._starved = None  # everybody has a block for the next step
        return RunPlan(
            num_steps=num_steps,
            num_decode_requests=len(run.sequences),
            num_decode_kv_tokens=run.num_kv_tokens,
        )

    def end_run(self, num_steps: int) -> tuple[SequenceUpdate, ...]:
        """The first ``num_steps`` of what was planned are over; the last tokens of those that it ended."""
        run = self._run
        if run is None:
            raise RuntimeError("no run is under way")
        self._num_steps += num_steps
        filled = run.advance(num_steps)
        if filled:
            self._is_refusing = False
        if not run.is_over:
            for sequence in filled:
                self._blocks.register_last(sequence)
            return ()
        self._leave_run()
        updates: list[SequenceUpdate] = []
        for sequence in run.sequences:
            if sequence in filled:
                self._blocks.register_last(sequence)
            if (finish_reason := sequence.finish_reason()) is not None:
                self._finish(sequence, finish_reason)
                updates.append(sequence.update(finish_reason))
        return tuple(updates)

    # -- facts

    @property
    def has_work(self) -> bool:
        """Something is running or waiting. ``schedule`` can still be empty: see ``Step``."""
        return len(self._running) + self.num_waiting > 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """For blocks and a slot, or for KV to be loaded."""
        return self._table.num_waiting

    def load(self, at_s: float) -> LoadSnapshot:
        """How busy this worker is at ``at_s`` of its clock."""
        return LoadSnapshot(
            at_s=at_s,
            num_running=len(self._running),
            num_waiting=self.num_waiting,
            num_waiting_tokens=self._table.num_waiting_tokens,
            num_free_blocks=self._blocks.pool.num_free_blocks,
            num_blocks=self.config.num_blocks,
        )

    @property
    def pool(self) -> BlockPool:
        """The blocks and the prefix cache: to look at, and to take KV events from."""
        return self._blocks.pool

    def state_of(self, request_id: str) -> SequenceState | None:
        sequence = self._table.get(request_id)
        return None if sequence is None else sequence.state

    def token_ids(self, request_id: str) -> tuple[int, ...]:
        """All known tokens of a request, prompt first. ``KeyError`` if it is gone."""
        self._leave_run()
        return self._table[request_id].token_ids()

    def reset_prefix_cache(self) -> None:
        """Forget all KV that is cached here; tiers below keep theirs. What runs goes on with its own blocks,
        which nobody else will find."""
        self._leave_run()
        self._blocks.pool.reset()
        for sequence in self._table.values():
            sequence.is_cacheable = False

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(blocks)."""
        self._leave_run()
        self._blocks.pool.check_integrity()
        self._table.check_integrity()
        sequences = self._table.values()
        for sequence in sequences:
            sequence.check_integrity(self._block_size)
        leaving = [sequence for sequence in self._in_flight if sequence.state is SequenceState.GONE]
        held = Counter(block for sequence in (*sequences, *leaving) for block in sequence.block_ids)
        for block in range(self.config.num_blocks):
            assert self._blocks.pool.num_references(block) == held[block], f"block {block}: wrong holders"

    # -- how

    def _continue_reserved(self, sequence: Sequence, request: GenerateRequest) -> None:
        if (request.prompt, request.generated) != (sequence.request.prompt, sequence.request.generated):
            raise ValueError(f"request {request.request_id!r} has other tokens than were reserved for")
        if root_of(request, self.config) != sequence.cache_root:
            raise TransferError(
                f"request {request.request_id!r}: its adapter was replaced after blocks were reserved for "
                "it; prefill again"
            )
        self._leave_run()
        sequence.request = request
        self._table.move(sequence, SequenceState.RUNNING)
        self._blocks.register_full(sequence, 0)

    def _grow(self, sequence: Sequence, preempted: list[str]) -> bool:
        """One more block, if need be taken from the running requests behind it."""
        while not self._blocks.grow(sequence):
            if self._running[-1] is sequence:
                return False
            victim = self._running.pop_last()
            self._blocks.free(victim)
            self._table.enter(victim, SequenceState.WAITING)
            preempted.append(victim.request.request_id)
        return True

    @property
    def _is_starving(self) -> bool:
        return self._starved is not None and self._starved.state is SequenceState.RUNNING

    def _require_no_step(self) -> None:
        if self._step is not None:
            raise RuntimeError(f"step {self._step.number} is not complete")

    def _leave_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.catch_up()

    def _finish(self, sequence: Sequence, finish_reason: FinishReason) -> None:
        self._is_refusing = False
        if finish_reason is FinishReason.HANDOVER:
            self._table.move(sequence, SequenceState.HELD)
        else:
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._is_refusing = False
        self._table.forget(sequence)
        if sequence not in self._in_flight:
            self._blocks.free(sequence)
