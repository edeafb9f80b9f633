"""``SimTiers``: what one rank keeps beyond its device, in virtual time.

::

    device ── what is new, or asked for and not there ──> each tier, from what is above it
      ▲                                                        │
      └──────────── loads, where they beat computing ──────────┘

When a request is admitted, ``kv.OnboardingPolicy`` decides with what was measured, as it does live: loads and
steps take the time that their models say, and that is what is measured. What is due is done when somebody
looks (``advance``), in the order in which it was due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import (
    CachedBlock,
    FrequencySketch,
    Important,
    OffloadFilter,
    OnboardingReason,
    OnboardingRule,
    Others,
    SeenOften,
    TierContents,
    TierRun,
    onboarding_policy,
)
from dynamo_sdk.scheduling import Onboarding, Scheduler, Step, findable_keys
from dynamo_sdk.types.kv_events import BlocksRemoved, BlocksStored, KVEvent
from dynamo_sdk.types.loads import BlockLoadTimes
from dynamo_sdk.types.requests import GenerateRequest
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN

from .tier import BeginCopy, Copy, SimTier, TierLoad, TierModel

MIN_MEASURED_TOKENS = 8
"""A prompt's last few tokens say nothing about what computing a prompt takes."""

MAX_PROBE_BLOCKS = 16

_MAX_COUNTED = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Blocks of a request on their way to the device; or one that nobody waits for, to measure a tier
    (``request_id`` None)."""

    request_id: str | None
    parts: tuple[tuple[SimTier, TierLoad], ...]
    asked_s: float
    ends_s: float

    @property
    def num_blocks(self) -> int:
        return sum(len(part.pins) for _, part in self.parts)

    @property
    def num_bytes(self) -> int:
        return sum(len(part.pins) * tier.block_bytes for tier, part in self.parts)


class SimTiers:
    """``models``: fastest first."""

    def __init__(
        self,
        models: Sequence[TierModel],
        scheduler: Scheduler,
        *,
        block_bytes: int,
        onboarding: OnboardingRule = "measured",
    ) -> None:
        config = scheduler.config
        self.policy = onboarding_policy(onboarding, block_size=config.block_size, block_bytes=block_bytes)
        self.decisions: Counter[OnboardingReason] = Counter()
        self.num_told = self.num_matched_blocks = 0
        self.block_size = config.block_size
        self._scheduler = scheduler
        self._pool = pool = scheduler.pool
        self._contents = TierContents(
            [model.kind for model in models],
            config.block_size,
            lambda key: pool.place_of(key) is not None,
            events_have_tokens=config.events_have_tokens,
        )
        self._contents.snapshot()  # from here on it tells what changes
        self._is_recording = True
        self._sketch = FrequencySketch(min(_MAX_COUNTED, max(model.num_blocks for model in models)))
        self.tiers: list[SimTier] = []
        for model in models:
            self.tiers.append(SimTier(model, block_bytes, self._copier(), self._filters(model)))
        self._events: list[KVEvent] = []
        self._loading: dict[str, Load] = {}
        self._probing: set[str] = set()
        self._loads: list[tuple[float, int, Load]] = []  # a heap; may name those of aborted requests
        self._order = count()
        pool.record_new_blocks()

    def _filters(self, model: TierModel) -> list[OffloadFilter]:
        filters: list[OffloadFilter] = []
        if model.min_priority is not None:
            filters.append(Important(model.min_priority))
        if model.min_uses > 0:
            filters.append(SeenOften(self._sketch, model.min_uses))
        return filters

    def _copier(self) -> BeginCopy:
        """Copies for the next tier come from the device, or from those above it that are there already."""
        above, pool = tuple(self.tiers), self._pool

        def begin_copy(key: CacheKey) -> Copy | None:
            place = pool.place_of(key)
            if place is not None:
                return Copy(lambda: pool.is_unchanged(place), is_from_device=True)
            for tier in above:
                if (copy := tier.begin_copy(key)) is not None:
                    return copy
            return None

        return begin_copy

    def add(self, request: GenerateRequest, keys: Sequence[CacheKey] | None, now_s: float) -> None:
        """Queue a request. If it is its turn, what it loads is under way at once, beside a step. Raises
        ``InvalidRequest``."""
        keys = findable_keys(request, self._scheduler.config) if keys is None else keys
        self._scheduler.add(request, keys, is_onboarding=True)
        self._asked(request, keys, now_s)
        self._scheduler.start_loads(lambda onboarding: self._begin(onboarding, now_s, is_asked_again=True))

    # -- what comes down

    def _asked(self, request: GenerateRequest, keys: Sequence[CacheKey], now_s: float) -> None:
        """A request has come for the blocks with these keys: what is asked for often goes further down."""
        counting = [number for number, tier in enumerate(self.tiers) if tier.model.min_uses > 0]
        if not counting:
            return
        for key in keys:
            self._sketch.increment(key)
        blocks = [self._block(request, keys, place) for place in range(len(keys))]
        for number in counting:
            above = self.tiers[:number]
            self.tiers[number].offer([block for block in blocks if self._is_there(block.key, above)], now_s)

    def _is_there(self, key: CacheKey, tiers: Sequence[SimTier]) -> bool:
        return self._pool.place_of(key) is not None or any(key in tier for tier in tiers)

    def _block(self, request: GenerateRequest, keys: Sequence[CacheKey], place: int) -> CachedBlock:
        block_size = self.block_size
        tokens = request.prompt + request.generated if request.generated else request.prompt
        tokens = tokens[place * block_size * BYTES_PER_TOKEN : (place + 1) * block_size * BYTES_PER_TOKEN]
        parent = keys[place - 1] if place else None
        return CachedBlock(keys[place], parent, tokens, request.lora, request.cache_salt, -request.priority)

    def computed(self, step: Step, ends_s: float, duration_s: float) -> None:
        """A step will be over at ``ends_s``: what it took, each prompt by its share of the tokens, and what
        it has filled."""
        for part in step.sequences[step.num_decode_requests :]:
            if part.num_tokens >= MIN_MEASURED_TOKENS:
                share_s = duration_s * part.num_tokens / step.num_tokens
                self.policy.computed(part.start, part.num_tokens, share_s, ends_s)
        self.filled(ends_s)

    def filled(self, at_s: float) -> None:
        """What the pool has cached since the last time can be copied from ``at_s`` on."""
        new_blocks = self._pool.take_new_blocks()
        if new_blocks:
            for tier in self.tiers:
                tier.offer(new_blocks, at_s)

    # -- what goes up

    def begin(self, onboarding: Onboarding, now_s: float) -> bool:
        """Whether the request waits for blocks that are being loaded from now on. It is WAITING still."""
        return self._begin(onboarding, now_s, is_asked_again=False)

    def _begin(self, onboarding: Onboarding, now_s: float, *, is_asked_again: bool) -> bool:
        """``is_asked_again``: if it does not load now."""
        scheduler = self._scheduler
        missing = onboarding.keys[onboarding.num_cached_blocks :]
        runs = self._runs(missing)
        decision = self.policy.decide(
            [
                TierRun(tier=tier.model.name, num_blocks=len(keys), wait_s=tier.wait_s(now_s))
                for tier, keys in runs
            ],
            num_device_blocks=onboarding.num_cached_blocks,
            num_prompt_tokens=onboarding.num_tokens,
            now_s=now_s,
            others=Others(num_waiting=scheduler.num_waiting - 1, num_running=scheduler.num_running),
        )
        if decision.num_blocks or not is_asked_again:
            self.decisions[decision.reason] += 1
            self._count(runs, len(missing))
        for tier, keys in runs:
            name = tier.model.name
            if name in decision.probe and name not in self._probing:
                self._probing.add(name)
                for num_blocks in sorted({1, min(len(keys), MAX_PROBE_BLOCKS)}):
                    self._load(None, [(tier, keys[:num_blocks])], now_s)
        if not decision.num_blocks:
            return False
        self._load(onboarding.request_id, _first(runs, decision.num_blocks), now_s)
        return True

    def _runs(self, keys: Sequence[CacheKey]) -> list[tuple[SimTier, list[CacheKey]]]:
        """Who has them, each in the fastest tier, up to the first gap."""
        runs: list[tuple[SimTier, list[CacheKey]]] = []
        for key in keys:
            tier = next((tier for tier in self.tiers if key in tier), None)
            if tier is None:
                break
            if not runs or runs[-1][0] is not tier:
                runs.append((tier, []))
            runs[-1][1].append(key)
        return runs

    def _count(self, runs: Sequence[tuple[SimTier, Sequence[CacheKey]]], num_asked: int) -> None:
        """What was found of ``num_asked`` blocks."""
        self.num_matched_blocks += sum(len(found) for _, found in runs)
        for tier in self.tiers:
            num_hits = sum(len(found) for holder, found in runs if holder is tier)
            tier.counts.num_lookup_blocks += num_asked
            tier.counts.num_hit_blocks += num_hits
            num_asked -= num_hits

    def _load(
        self, request_id: str | None, runs: Sequence[tuple[SimTier, Sequence[CacheKey]]], now_s: float
    ) -> None:
        parts = tuple([(tier, tier.load(keys, now_s)) for tier, keys in runs])
        ends_s = max([part.ends_s for _, part in parts])
        load = Load(request_id=request_id, parts=parts, asked_s=now_s, ends_s=ends_s)
        if request_id is not None:
            self._loading[request_id] = load
            for tier, part in parts:
                tier.counts.num_onboarded_blocks += len(part.pins)
                tier.counts.onboarded_bytes += len(part.pins) * tier.block_bytes
                tier.counts.onboard_s += part.ends_s - part.begins_s
        heappush(self._loads, (ends_s, next(self._order), load))

    def cancel(self, request_id: str) -> None:
        """Nobody waits for these blocks any more; they arrive all the same."""
        self._loading.pop(request_id, None)

    def block_load_times(self, now_s: float) -> BlockLoadTimes:
        """As measured."""
        kinds = [(tier.model.name, tier.model.kind) for tier in self.tiers]
        return self.policy.block_load_times(kinds, now_s)

    # -- time

    @property
    def next_s(self) -> float | None:
        """When there is something to ``advance``; None = nothing is under way."""
        moments = [at_s for at_s, _, _ in self._loads[:1]]
        moments += [at_s for tier in self.tiers if (at_s := tier.next_s) is not None]
        return min(moments, default=None)

    @property
    def next_load_s(self) -> float | None:
        """When the next load is over."""
        return self._loads[0][0] if self._loads else None

    def advance(self, now_s: float) -> list[Load]:
        """Do all that is due by ``now_s``. Requests whose blocks have arrived can run now."""
        arrived: list[Load] = []
        while (at_s := self.next_s) is not None and at_s <= now_s:
            if self._loads and self._loads[0][0] <= at_s:
                arrived += self._end_load(heappop(self._loads)[2])
                continue
            self._events += self._scheduler.pool.take_events()  # what happened before this
            for number, tier in enumerate(self.tiers):
                if tier.next_s == at_s:
                    change = tier.advance(at_s)
                    self._contents.removed(number, change.removed)
                    self._contents.expect(number, change.stored)
                    self._contents.stored(number, [block.key for block in change.stored])
                    self._contents.expect_no_more(number, change.stored)
            self._take_told()
        return arrived

    def _end_load(self, load: Load) -> list[Load]:
        for tier, part in load.parts:
            tier.loaded(part)
            self.policy.loaded(tier.model.name, len(part.pins), part.ends_s - part.begins_s, part.ends_s)
        request_id = load.request_id
        if request_id is None:
            self._probing.difference_update(tier.model.name for tier, _ in load.parts)
            return []
        if self._loading.get(request_id) is not load:
            return []  # aborted; the id may be another request's by now
        del self._loading[request_id]
        self._scheduler.end_onboarding(request_id, load.num_blocks)
        self.filled(load.ends_s)
        return [load]

    # -- events

    def _take_told(self) -> None:
        events = self._contents.take_events()
        if self._is_recording:
            self.num_told += _num_told(events)
            self._events += events

    def record_events(self, is_wanted: bool) -> None:
        """Whether ``take_events`` gives any from now on. By default it does."""
        self._is_recording = is_wanted
        if not is_wanted:
            self._events.clear()

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def take_events(self) -> tuple[KVEvent, ...]:
        """What has changed in all tiers, the device included, since the last call."""
        events = (*self._events, *self._scheduler.pool.take_events())
        self._events.clear()
        return events

    def snapshot(self) -> tuple[KVEvent, ...]:
        """Events that add what the tiers hold to what the device holds. ``take_events`` comes next: what it
        gives is in the snapshot."""
        self._events += self._scheduler.pool.take_events()  # what happened before this
        events = self._contents.snapshot()
        self._take_told()
        return events

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(blocks)."""
        for number, tier in enumerate(self.tiers):
            tier.check_integrity()
            assert tier.num_blocks == self._contents.num_blocks(number), "events speak of other blocks"


def _first(
    runs: Sequence[tuple[SimTier, Sequence[CacheKey]]], num_blocks: int
) -> list[tuple[SimTier, Sequence[CacheKey]]]:
    """The first ``num_blocks`` of them; a decision ends at the end of a run."""
    found: list[tuple[SimTier, Sequence[CacheKey]]] = []
    for tier, keys in runs:
        if num_blocks <= 0:
            break
        found.append((tier, keys))
        num_blocks -= len(keys)
    return found


def _num_told(events: Sequence[KVEvent]) -> int:
    """By how many blocks what was told has grown."""
    return sum(
        len(event.block_hashes) if isinstance(event, BlocksStored) else -len(event.block_hashes)
        for event in events
        if isinstance(event, BlocksStored | BlocksRemoved)
    )
