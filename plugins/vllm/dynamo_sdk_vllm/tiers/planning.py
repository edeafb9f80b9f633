"""``Planner``: the scheduler's half. It follows vLLM's scheduler and says what to save and what to load.

::

    match     how much of a request lies in tiers and is worth loading   get_num_new_matched_tokens
    admitted  it has blocks now: what they held is over, its load begins update_state_after_alloc
    orders    a step was planned: blocks that will be full are saved     build_connector_meta
    heard     the workers' reports of a step                             update_connector_output
    ended     vLLM forgets the request                                   request_finished

Nothing here knows a clock of its own or vLLM's classes, and what is known of the tiers may be out of date: a
load that finds less than was promised is computed.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import CachedBlock, OnboardingPolicy, Others
from dynamo_sdk.types import KVSource
from dynamo_sdk.types.tokens import pack_tokens

from .events import KnownBlock, TierEvents
from .held import HeldBlocks, Lookups
from .messages import LoadOrder, Orders, Report, Sighting
from .names import BlockNamer, Named
from .sharing import num_known_of, rest_of, source_of

logger = logging.getLogger(__name__)

PATIENCE_S = 0.05
"""How long a request waits for blocks that are just being saved."""
PROBE_EVERY_S = 1.0
"""How often the workers are asked to measure a tier that nothing is known of."""
MIN_MEASURED_TOKENS = 8
"""A prompt's last few tokens say nothing about what computing a prompt takes."""


class TrackedRequest(Named, Protocol):
    """The part of vLLM's ``Request`` that we read."""

    request_id: str
    priority: int
    num_prompt_tokens: int
    num_computed_tokens: int
    mm_features: Collection[object]
    block_hashes: Sequence[bytes]
    prompt_embeds: object | None
    sampling_params: object | None

    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Match:
    """``num_blocks`` after the ``num_device_blocks`` that vLLM has itself."""

    num_device_blocks: int
    num_blocks: int
    limit_s: float | None


@dataclass(slots=True)
class _Tracked:
    """``block_ids``: vLLM's, in order. ``num_device_blocks``: of them, those that vLLM had when it asked.
    ``num_saved``: of the first blocks, those that need no saving any more. ``num_known_tokens``: of the first
    ones, those whose KV had arrived when the request was admitted. ``is_new``: no step has run since.
    ``source``: who else is said to have the first blocks."""

    request: TrackedRequest
    root: CacheKey
    source: KVSource | None
    keys: list[CacheKey] = field(default_factory=list[CacheKey])
    block_ids: list[int] = field(default_factory=list[int])
    num_saved: int = 0
    num_device_blocks: int = 0
    num_known_tokens: int = 0
    is_new: bool = True
    match: _Match | None = None
    waits_since_s: float | None = None
    is_counted: bool = False
    is_sighted: bool = False
    may_load: bool = True
    may_save: bool = True


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What vLLM planned: tokens by request, those that came back after a preemption, and the blocks that
    running requests got."""

    num_scheduled_tokens: Mapping[str, int]
    resumed: Collection[str] = ()
    new_block_ids: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])


class Planner:
    """``counts_uses``: some tier wants to hear of requests, not only of blocks that are new."""

    def __init__(
        self,
        *,
        namer: BlockNamer,
        held: HeldBlocks,
        events: TierEvents,
        policy: OnboardingPolicy,
        block_size: int,
        counts_uses: bool,
        now_s: Callable[[], float],
    ) -> None:
        self._namer = namer
        self._held = held
        self.events = events
        self._policy = policy
        self._block_size = block_size
        self._counts_uses = counts_uses
        self._now_s = now_s
        self._requests: dict[str, _Tracked] = {}
        self._step = 0
        self._num_running = 0  # in the last step; vLLM does not tell connectors who waits
        self._has_heard = False
        self._overwritten: list[int] = []
        self._loads: list[LoadOrder] = []
        self._sightings: list[Sighting] = []
        self._under_way: deque[tuple[int, float, list[tuple[int, int]], int]] = deque()
        self._last_end_s = 0.0
        self._probed_at_s: dict[str, float] = {}
        self.lookups = Lookups()
        self.num_matched_tokens = 0
        self.num_decisions: Counter[str] = Counter()

    # -- a request

    def match(self, request: TrackedRequest, num_computed_tokens: int) -> int | None:
        """Tokens to load behind the first ``num_computed_tokens``, which vLLM has. None = ask again: they are
        being saved right now, or nothing was heard of the tiers yet. May be asked often."""
        tracked = self._track(request)
        if tracked is None:
            return 0
        size = self._block_size
        num_device_blocks = num_computed_tokens // size
        tracked.num_device_blocks, tracked.match = num_device_blocks, None
        num_blocks = (request.num_tokens - 1) // size  # the last token is always computed
        self._namer.extend(tracked.keys, request, num_blocks, root=tracked.root)
        keys = tracked.keys[num_device_blocks:num_blocks]
        if not keys or not tracked.may_load:
            return 0
        if not self._has_heard:
            return None  # the first report says what the tiers have from before; an empty step brings it
        now_s = self._now_s()
        num_at_peer = num_known_of(tracked.source, num_device_blocks)
        runs = self._held.runs(keys, num_at_peer=num_at_peer)
        num_held = sum(run.num_blocks for run in runs)
        for place in range(num_device_blocks, num_device_blocks + num_held):
            if self.events.is_untold(tracked.keys[place]):
                self._learn(tracked, place)
        if num_held < len(keys) and self._held.is_pending(keys[num_held], now_s):
            if tracked.waits_since_s is None:
                tracked.waits_since_s = now_s
            if now_s - tracked.waits_since_s < PATIENCE_S:
                return None
        is_first, tracked.is_counted = not tracked.is_counted, True
        if is_first:
            self._held.runs(keys, self.lookups, num_at_peer=num_at_peer)
        decision = self._policy.decide(
            runs,
            num_device_blocks=num_device_blocks,
            num_prompt_tokens=request.num_tokens,
            now_s=now_s,
            others=Others(num_running=self._num_running),
        )
        if is_first:
            self.num_matched_tokens += num_held * size
            self.num_decisions[decision.reason.name.lower()] += 1
        self._sight(tracked, decision.probe, now_s)
        if not decision.num_blocks:
            return 0
        tracked.match = _Match(num_device_blocks, decision.num_blocks, decision.limit_s)
        return decision.num_blocks * size

    def admitted(self, request: TrackedRequest, block_ids: Sequence[int], num_external_tokens: int) -> None:
        """It has ``block_ids``; we load ``num_external_tokens`` of it, others may load the rest. Raises
        ``ConfigError`` where vLLM keeps them to itself: then nobody can know what a block holds."""
        if not block_ids:
            raise ConfigError(
                "this version of vLLM does not tell KV tiers beside another connector which blocks requests "
                "have; take 0.26 or a later one, or leave the tiers or the hand-over out"
            )
        size = self._block_size
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            self._overwritten += block_ids[request.num_computed_tokens // size :]
            return
        num_known = max(request.num_computed_tokens, tracked.num_device_blocks * size)
        self._overwritten += block_ids[num_known // size :]
        tracked.block_ids, tracked.num_known_tokens, tracked.is_new = list(block_ids), num_known, True
        match, tracked.match = tracked.match, None
        tracked.num_saved = min(tracked.num_saved, tracked.num_device_blocks)
        if match is None or not num_external_tokens:
            return
        end = match.num_device_blocks + num_external_tokens // size
        places = slice(match.num_device_blocks, end)
        self._loads.append(
            LoadOrder(
                request.request_id,
                tuple(tracked.keys[places]),
                tuple(block_ids[places]),
                match.limit_s,
                rest_of(tracked.source, match.num_device_blocks),
            )
        )

    def ended(self, request_id: str) -> None:
        """Finished or aborted."""
        self._requests.pop(request_id, None)

    def start_anew(self, generation: bytes) -> None:
        """What was computed until now is of no use any more, as when vLLM was given other weights: blocks
        have other names from now on. ``generation`` was never given before."""
        self._namer.start_anew(generation)
        for tracked in self._requests.values():
            tracked.may_save = tracked.may_load = False

    # -- a step

    def orders(self, facts: StepFacts) -> Orders:
        """What the workers have to do in the step that was just planned."""
        now_s = self._now_s()
        self._step += 1
        for request_id, block_ids in facts.new_block_ids.items():
            tracked = self._requests.get(request_id)
            if request_id not in facts.resumed:
                self._overwritten += block_ids
                if tracked is not None:
                    tracked.block_ids += block_ids
        saves: list[tuple[CachedBlock, int]] = []
        prompts: list[tuple[int, int]] = []
        for request_id, num_tokens in facts.num_scheduled_tokens.items():
            tracked = self._requests.get(request_id)
            if tracked is not None:
                saves += self._to_save(tracked, num_tokens, now_s)
                if num_tokens >= MIN_MEASURED_TOKENS:
                    prompts.append((tracked.request.num_computed_tokens, num_tokens))
        num_tokens = sum(facts.num_scheduled_tokens.values())
        self._num_running = len(facts.num_scheduled_tokens)
        self._under_way.append((self._step, now_s, prompts, num_tokens))
        orders = Orders(
            step=self._step,
            is_idle=not num_tokens,
            overwritten=self._overwritten,
            saves=saves,
            loads=self._loads,
            sightings=self._sightings,
        )
        self._overwritten, self._loads, self._sightings = [], [], []
        return orders

    def heard(self, reports: Iterable[Report]) -> None:
        """What the workers said after a step."""
        reports = list(reports)
        for report in reports:
            self._held.follow_hints(report.peer_tiers)
            for change in report.changes:
                changed = self._held.change(report.rank, change)
                tell = self.events.stored if change.is_stored else self.events.removed
                tell(change.tier, changed)
            for change in self._held.lose(report.rank, report.lost):
                self.events.removed(change.tier, change.keys)
            for request_id in report.cut_short:
                self._compute(request_id)
            for load in report.loads:
                self._policy.loaded(load.tier, load.num_blocks, load.seconds, self._now_s())
        if reports:
            self._has_heard = True
            self._held.settle(min(report.settled for report in reports))
            self._measure(min(report.step for report in reports))

    # -- inside

    def _track(self, request: TrackedRequest) -> _Tracked | None:
        """None for what the tiers leave alone: its KV is not a function of its tokens."""
        tracked = self._requests.get(request.request_id)
        if tracked is not None:
            return tracked
        if request.mm_features or request.prompt_embeds is not None:
            return None
        try:
            tracked = _Tracked(request, self._namer.root(request), source_of(request.sampling_params))
        except OSError as error:
            logger.warning("blocks of adapter %s stay on the device: %s", request.lora_request, error)
            return None
        self._requests[request.request_id] = tracked
        return tracked

    def _sight(self, tracked: _Tracked, probe: Sequence[str], now_s: float) -> None:
        """Tell the workers of a request, where that serves a purpose."""
        probe = [
            tier for tier in probe if now_s - self._probed_at_s.get(tier, -PROBE_EVERY_S) >= PROBE_EVERY_S
        ]
        if not probe and (tracked.is_sighted or not self._counts_uses):
            return
        self._probed_at_s.update(dict.fromkeys(probe, now_s))
        request, lora = tracked.request, tracked.request.lora_request
        self._sightings.append(
            Sighting(
                keys=tuple(tracked.keys),
                num_device_blocks=tracked.num_device_blocks,
                prompt=pack_tokens(request.all_token_ids),
                lora=None if lora is None else lora.lora_name,
                cache_salt=request.cache_salt,
                priority=request.priority,
                is_new=not tracked.is_sighted,
                is_probe=bool(probe),
                source=tracked.source,
            )
        )
        tracked.is_sighted = True

    def _to_save(self, tracked: _Tracked, num_tokens: int, now_s: float) -> list[tuple[CachedBlock, int]]:
        """Full after the step, of tokens that are known now: drafts that may be refused are not."""
        request, size = tracked.request, self._block_size
        is_new, tracked.is_new = tracked.is_new, False
        if is_new and request.num_computed_tokens // size > tracked.num_known_tokens // size:
            tracked.may_save = False  # another connector loads in this step, and may yet say that it failed
        if not tracked.may_save:
            return []
        num_full = min(
            min(request.num_computed_tokens + num_tokens, request.num_tokens) // size, len(tracked.block_ids)
        )
        self._namer.extend(tracked.keys, request, num_full, root=tracked.root)
        saves: list[tuple[CachedBlock, int]] = []
        lora = request.lora_request
        for place in range(tracked.num_saved, num_full):
            key = tracked.keys[place]
            if self._held.has(key) or self._held.is_pending(key, now_s):
                continue
            block = CachedBlock(
                key=key,
                parent=tracked.keys[place - 1] if place else None,
                tokens=pack_tokens(request.all_token_ids[place * size : (place + 1) * size]),
                lora=None if lora is None else lora.lora_name,
                cache_salt=request.cache_salt,
                priority=-request.priority,
            )
            saves.append((block, tracked.block_ids[place]))
            self._learn(tracked, place)
            self._held.expect(key, self._step, now_s)
        tracked.num_saved = max(tracked.num_saved, num_full)
        return saves

    def _compute(self, request_id: str) -> None:
        """A load ended early: this request computes what is left, and does not try again."""
        tracked = self._requests.get(request_id)
        if tracked is not None:
            tracked.may_load = False

    def _learn(self, tracked: _Tracked, place: int) -> None:
        """What a block is, for events; vLLM has names for blocks where its prefix cache is on."""
        request, size = tracked.request, self._block_size
        if place >= len(request.block_hashes):
            return
        lora = request.lora_request
        block = KnownBlock(
            name=request.block_hashes[place],
            parent=request.block_hashes[place - 1] if place else None,
            tokens=pack_tokens(request.all_token_ids[place * size : (place + 1) * size]),
            lora=None if lora is None else lora.lora_name,
            cache_salt=request.cache_salt,
        )
        self.events.learn(tracked.keys[place], block)

    def _measure(self, step: int) -> None:
        """Steps up to ``step`` have ended; the time of one is shared out by tokens among its prompts."""
        now_s = self._now_s()
        while self._under_way and self._under_way[0][0] <= step:
            _, begin_s, prompts, num_tokens = self._under_way.popleft()
            wall_s = now_s - max(begin_s, self._last_end_s)
            for first, count in prompts:
                self._policy.computed(first, count, wall_s * count / num_tokens, now_s)
        self._last_end_s = now_s
