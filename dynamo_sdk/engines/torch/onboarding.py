"""``TierLink``: joins the scheduler and the tiers below the device.

::

    look_up     a request arrives: do the tiers have more than the device, and is it worth loading?
    begin       it was admitted: load into its blocks, beside the steps; then end_onboarding
    collect     what is new on the device goes down
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import anyio

from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import Others
from dynamo_sdk.scheduling import Onboarding, Scheduler, Step, findable_keys
from dynamo_sdk.tiers import KVTiers, LoadReport
from dynamo_sdk.types import BlockLoadTimes, GenerateRequest

_log = logging.getLogger(__name__)

MIN_MEASURED_TOKENS = 8
"""A prompt's last few tokens say nothing about what computing a prompt takes."""


class TierLink:
    """``on_end``: somebody's load is over."""

    def __init__(self, scheduler: Scheduler, tiers: KVTiers, on_end: Callable[[], None]) -> None:
        self.tiers = tiers
        self.num_looking = 0
        self._scheduler = scheduler
        self._on_end = on_end
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._reports: dict[str, LoadReport] = {}
        scheduler.pool.record_new_blocks()

    async def look_up(self, request: GenerateRequest) -> tuple[list[CacheKey], bool]:
        """The request's keys, and whether to load when it is admitted."""
        keys = findable_keys(request, self._scheduler.config)
        self.tiers.saw(request, keys)
        num_device_blocks = self._scheduler.pool.count_cached(keys)
        if num_device_blocks == len(keys):
            return keys, False
        self.num_looking += 1
        try:
            runs = await self.tiers.find(keys, num_device_blocks, is_counted=True)
        finally:
            self.num_looking -= 1
        num_tokens = request.num_prompt_tokens + request.num_generated_tokens
        decision = self.tiers.decide(
            runs, keys, num_device_blocks, num_tokens, is_counted=True, others=self._others()
        )
        return keys, decision.num_blocks > 0

    def begin(self, onboarding: Onboarding) -> None:
        """Load for a request that has its blocks now."""
        name = onboarding.request_id
        task = asyncio.get_running_loop().create_task(self._load(onboarding), name=f"onboard-{name}")
        self._loads[name] = task
        task.add_done_callback(lambda _: self._loads.pop(name, None))

    async def _load(self, onboarding: Onboarding) -> None:
        num_loaded = 0
        try:
            report = await self._load_blocks(onboarding)
            self._reports[onboarding.request_id] = report
            num_loaded = report.num_blocks
        except Exception:  # a bug costs a prefix
            _log.exception("request %s gets nothing from the tiers", onboarding.request_id)
        finally:
            self._scheduler.end_onboarding(onboarding.request_id, num_loaded)
            self._on_end()

    async def _load_blocks(self, onboarding: Onboarding) -> LoadReport:
        """Things may have changed since ``look_up``: the device's cache, the tiers, what is measured."""
        keys, first = onboarding.keys, onboarding.num_cached_blocks
        runs = await self.tiers.find(keys, first)
        decision = self.tiers.decide(runs, keys, first, onboarding.num_tokens, others=self._others(1))
        return await self.tiers.load(runs, decision, keys, onboarding.block_ids, first)

    def _others(self, num_own: int = 0) -> Others:
        """Who wants the device, ``num_own`` of those that wait left out."""
        scheduler = self._scheduler
        return Others(num_waiting=scheduler.num_waiting - num_own, num_running=scheduler.num_running)

    def take_report(self, request_id: str) -> LoadReport | None:
        """What was loaded for a request; once."""
        return self._reports.pop(request_id, None)

    async def cancel(self, request_id: str) -> None:
        """Nothing is being written into the request's blocks when this returns. Cannot be cancelled."""
        task = self._loads.get(request_id)
        if task is not None:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([task])
        self._reports.pop(request_id, None)

    def collect(self) -> None:
        """What is new on the device goes down."""
        new_blocks = self._scheduler.pool.take_new_blocks()
        if new_blocks:
            self.tiers.offload(new_blocks)

    def measure(self, step: Step, wall_s: float, now_s: float) -> None:
        """What computing took: ``wall_s`` is shared out by tokens among the prompts of the step."""
        for part in step.sequences[step.num_decode_requests :]:
            if part.num_tokens >= MIN_MEASURED_TOKENS:
                share_s = wall_s * part.num_tokens / step.num_tokens
                self.tiers.policy.computed(part.start, part.num_tokens, share_s, now_s)

    def block_load_times(self, now_s: float) -> BlockLoadTimes:
        """As measured."""
        kinds = [(tier.name, tier.kind) for tier in self.tiers.tiers]
        return self.tiers.policy.block_load_times(kinds, now_s)

    async def close(self) -> None:
        """End all loads, then the tiers."""
        for name in list(self._loads):
            await self.cancel(name)
        await self.tiers.close()
