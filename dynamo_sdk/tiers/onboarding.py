"""``Onboarder``: finds a prompt's blocks in the tiers, decides, and loads them into the device's blocks.

What is late, lost or broken ends the run that it is part of: what lies behind is computed. Loading that takes
longer than computing was expected to cost is given up; that, too, is a measurement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from dynamo_sdk.interfaces import BlockMemory, CacheKey
from dynamo_sdk.kv import NOBODY, OnboardingDecision, OnboardingPolicy, OnboardingReason, Others, TierRun
from dynamo_sdk.transfer.threads import run_to_end

from .staging import Staging
from .tier import Tier

LOOKUP_LIMIT_S = 0.25
"""What the tiers have not said by then is not loaded."""
LOAD_LIMIT_S = 30.0
"""Where nobody knows how long computing takes."""
MIN_LOAD_LIMIT_S = 0.05
MAX_RUNS = 16
MAX_PROBE_BLOCKS = 16

_DECISIONS = {
    OnboardingReason.LOAD: "load",
    OnboardingReason.RECOMPUTE: "recompute",
    OnboardingReason.UNMEASURED: "unmeasured",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundRun:
    """``num_blocks`` consecutive blocks of a prompt that ``tier`` has."""

    tier: Tier
    num_blocks: int


@dataclass(slots=True)
class LoadReport:
    """What one request got: ``num_blocks`` from the first missing one on, by tier. ``trying``: the last tier,
    how many of its blocks were asked for, and since when."""

    num_blocks: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    blocks_of: Counter[str] = field(default_factory=Counter[str])
    trying: tuple[Tier, int, float] | None = None


class Onboarder:
    def __init__(
        self,
        tiers: Sequence[Tier],
        policy: OnboardingPolicy,
        memory: BlockMemory,
        staging: Staging,
        threads: Executor,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.num_decisions: Counter[str] = Counter()
        self._tiers = tuple(tiers)
        self._memory = memory
        self._staging = staging
        self._threads = threads
        self._monotonic_s = monotonic_s
        self._probes: dict[str, asyncio.Task[None]] = {}

    async def find(self, keys: Sequence[CacheKey], *, is_counted: bool) -> list[FoundRun]:
        """Runs of leading ``keys``, each in the fastest tier that has its first block."""
        runs: list[FoundRun] = []
        at = 0
        try:
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                while at < len(keys) and len(runs) < MAX_RUNS:
                    run = await self._find_run(keys[at:])
                    if run is None:
                        break
                    runs.append(run)
                    at += run.num_blocks
        except TimeoutError:
            logger.debug("a tier took more than %.2f s to say what it has", LOOKUP_LIMIT_S)
        if is_counted:
            self._count(runs, len(keys))
        return runs

    async def _find_run(self, keys: Sequence[CacheKey]) -> FoundRun | None:
        for tier in self._tiers:
            num_blocks = await tier.count_prefix(keys)
            if num_blocks:
                return FoundRun(tier, num_blocks)
        return None

    def _count(self, runs: Sequence[FoundRun], num_blocks: int) -> None:
        """Each block once, though a tier may be asked again behind another one's run."""
        for tier in self._tiers:
            num_hits = sum(run.num_blocks for run in runs if run.tier is tier)
            tier.counts.num_lookup_blocks += num_blocks
            tier.counts.num_hit_blocks += num_hits
            num_blocks -= num_hits

    def decide(
        self,
        runs: Sequence[FoundRun],
        keys: Sequence[CacheKey],
        *,
        num_device_blocks: int,
        num_tokens: int,
        is_counted: bool,
        others: Others = NOBODY,
    ) -> OnboardingDecision:
        """``keys``: of the blocks of ``runs``. Begins what the policy wants to be measured."""
        decision = self.policy.decide(
            [TierRun(tier=run.tier.name, num_blocks=run.num_blocks) for run in runs],
            num_device_blocks=num_device_blocks,
            num_prompt_tokens=num_tokens,
            now_s=self._monotonic_s(),
            others=others,
        )
        if is_counted and decision.reason in _DECISIONS:
            self.num_decisions[_DECISIONS[decision.reason]] += 1
        at = 0
        for run in runs:
            if run.tier.name in decision.probe and run.tier.name not in self._probes:
                end = at + min(run.num_blocks, MAX_PROBE_BLOCKS, self._staging.batch_blocks)
                self._begin_probe(run.tier, keys[at:end])
            at += run.num_blocks
        return decision

    def _begin_probe(self, tier: Tier, keys: Sequence[CacheKey]) -> None:
        task = asyncio.get_running_loop().create_task(self._probe(tier, keys), name=f"probe-{tier.name}")
        self._probes[tier.name] = task
        task.add_done_callback(lambda _: self._probes.pop(tier.name, None))

    async def _probe(self, tier: Tier, keys: Sequence[CacheKey]) -> None:
        """How long one block takes, and how long a few, once there are connections and whatever else the
        first read has to make."""
        async with self._staging.borrow() as buffer:
            await tier.get_leading(keys[:1], self._staging.blocks(buffer, 1))
            for num_blocks in sorted({1, len(keys)}):
                begin_s = self._monotonic_s()
                found = await tier.get_leading(keys[:num_blocks], self._staging.blocks(buffer, num_blocks))
                if found == num_blocks:
                    self._measured(tier, num_blocks, begin_s)

    async def load(
        self,
        runs: Sequence[FoundRun],
        keys: Sequence[CacheKey],
        block_ids: Sequence[int],
        *,
        limit_s: float | None,
    ) -> LoadReport:
        """Fill ``block_ids[i]`` with the block ``keys[i]``, as far as ``runs`` go and ``limit_s`` allows. All
        writing is over when this returns or is cancelled."""
        report = LoadReport()
        begin_s = self._monotonic_s()
        limit_s = LOAD_LIMIT_S if limit_s is None else max(limit_s, MIN_LOAD_LIMIT_S)
        try:
            async with asyncio.timeout(limit_s):
                for run in runs:
                    end = report.num_blocks + run.num_blocks
                    await self._load_run(run.tier, keys[:end], block_ids[:end], report)
                    if report.num_blocks < end:
                        break
        except TimeoutError:
            logger.debug("loading was given up after %.2f s", limit_s)
            if report.trying is not None:  # it would have taken longer still
                self._measured(*report.trying)
        report.seconds = self._monotonic_s() - begin_s
        report.num_bytes = report.num_blocks * self._staging.block_bytes
        return report

    async def _load_run(
        self, tier: Tier, keys: Sequence[CacheKey], block_ids: Sequence[int], report: LoadReport
    ) -> None:
        """From ``report.num_blocks`` to the end of ``keys``."""
        begin_s, first = self._monotonic_s(), report.num_blocks
        try:
            while report.num_blocks < len(keys):
                at = report.num_blocks
                end = min(at + self._staging.batch_blocks, len(keys))
                report.trying = (tier, end - first, begin_s)
                async with self._staging.borrow() as buffer:
                    memories = self._staging.blocks(buffer, end - at)
                    num_found = await tier.get_leading(keys[at:end], memories)
                    if num_found:
                        data = buffer[: num_found * self._staging.block_bytes]
                        write = partial(self._memory.write, block_ids[at : at + num_found], data)
                        await run_to_end(self._threads, write, lambda: None)
                report.num_blocks += num_found
                if report.num_blocks < end:
                    return
            self._measured(tier, report.num_blocks - first, begin_s)
        finally:
            num_blocks = report.num_blocks - first
            report.blocks_of[tier.name] += num_blocks
            tier.counts.num_onboarded_blocks += num_blocks
            tier.counts.onboarded_bytes += num_blocks * self._staging.block_bytes
            tier.counts.onboard_s += self._monotonic_s() - begin_s

    def _measured(self, tier: Tier, num_blocks: int, begin_s: float) -> None:
        now_s = self._monotonic_s()
        self.policy.loaded(tier.name, num_blocks, now_s - begin_s, now_s)

    async def wait_probes(self) -> None:
        """Nothing is being measured any more."""
        if self._probes:
            await asyncio.wait(self._probes.values())

    async def close(self) -> None:
        for task in self._probes.values():
            task.cancel()
        await self.wait_probes()
