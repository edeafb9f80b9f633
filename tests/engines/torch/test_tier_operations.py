"""Thousands of random operations on a scheduler with tiers below it: outputs are those of each request alone.

The model is the checkable one of the scheduler's tests: a wrong block, one that was overwritten while it was
copied, or one that came too late shows as a wrong token. Stores are the real ones, much too small. What runs
on threads elsewhere runs on the loop here, so that a failure can be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dynamo_sdk.engines.torch.onboarding import TierLink
from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import BlockMemory, CacheKey, KVTierSetup
from dynamo_sdk.kv import EagerPolicy, PrefixIndex, cache_keys, cache_root
from dynamo_sdk.scheduling import Scheduler, SchedulerConfig, SequenceState
from dynamo_sdk.stores import DiskStore, DiskStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.tiers import KVTiers
from dynamo_sdk.types import GenerateRequest, KVLayout, KVTier, pack_tokens
from dynamo_sdk.types.plan import KVTierPlan
from tests.scheduling.fake_model import EOS, chain, expected_output, link, make_request, root_of, sample

BLOCK_SIZE = 2
NUM_BLOCKS = 10
BLOCK_BYTES = 8 * BLOCK_SIZE

CONFIG = SchedulerConfig(
    block_size=BLOCK_SIZE,
    num_blocks=NUM_BLOCKS,
    max_num_seqs=3,
    max_num_batched_tokens=8,
    context_length=18,
    eos_token_ids=frozenset({EOS}),
    cache_namespace=b"fake",
)


class LateThreads(Executor):
    """Does its work on the event loop, a few turns later: each time a few more, so that what may happen
    meanwhile does."""

    def __init__(self, *_: object, **__: object) -> None:
        self.num_calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.num_calls += 1
        self._later(self.num_calls % 5 * 3, future, partial(fn, *args, **kwargs))
        return future

    def _later(self, num_turns: int, future: Future[Any], work: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        if num_turns:
            loop.call_soon(self._later, num_turns - 1, future, work)
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


@pytest.fixture(autouse=True, scope="module")
def _no_threads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_sdk.tiers.offloading.COALESCE_S", 0.0)
        patch.setattr("dynamo_sdk.tiers.kv_tiers.ThreadPoolExecutor", LateThreads)
        patch.setattr("dynamo_sdk.stores.slot_store.ThreadPoolExecutor", LateThreads)
        yield


class FakeMemory(BlockMemory):
    """Block memory of the fake model: a number per position."""

    def __init__(self) -> None:
        self.numbers = np.zeros((NUM_BLOCKS, BLOCK_SIZE), dtype=np.uint64)
        self._layout = KVLayout(fingerprint="fake", block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)

    @property
    def layout(self) -> KVLayout:
        return self._layout

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        target = np.frombuffer(into, np.uint64).reshape(len(block_ids), BLOCK_SIZE)
        for row, block in enumerate(block_ids):
            target[row] = self.numbers[block]

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        source = np.frombuffer(data, np.uint64).reshape(len(block_ids), BLOCK_SIZE)
        for row, block in enumerate(block_ids):
            self.numbers[block] = source[row]

    def forward(self, step: Any) -> dict[str, int]:
        sampled = {}
        for part in step.sequences:
            number = root_of(part.request)
            if part.start:
                block, offset = divmod(part.start - 1, BLOCK_SIZE)
                number = int(self.numbers[part.block_ids[block], offset])
            for position, token in enumerate(part.token_ids, part.start):
                number = link(number, token)
                self.numbers[part.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE] = number
            if part.is_sampling:
                sampled[part.request_id] = sample(number)
        return sampled


def tier_setups(folder: Path, min_uses: int) -> list[KVTierSetup]:
    ram = KVTierPlan(name="ram", kind="ram", capacity_bytes=(NUM_BLOCKS + 3) * BLOCK_BYTES)
    disk = KVTierPlan(name="disk", kind="disk", capacity_bytes=16 * 4096, min_uses=min_uses)
    return [
        KVTierSetup(
            name="ram",
            tier=KVTier.HOST,
            plan=ram,
            build=lambda size: RamStore(
                RamStoreConfig(
                    block_bytes=size, capacity_bytes=ram.capacity_bytes or 0, eviction="leaf-first"
                )
            ),
        ),
        KVTierSetup(
            name="disk",
            tier=KVTier.DISK,
            plan=disk,
            build=lambda size: DiskStore(
                DiskStoreConfig(block_bytes=size, capacity_bytes=disk.capacity_bytes or 0, path=folder)
            ),
        ),
    ]


class Worker:
    """What the engine's core does, one operation at a time."""

    def __init__(self, folder: Path, min_uses: int) -> None:
        self.folder, self.min_uses = folder, min_uses
        self.requests: dict[str, GenerateRequest] = {}
        self.outputs: dict[str, list[int]] = {}
        self.truth: dict[CacheKey, bytes] = {}  # every block that could ever be right
        self.num_made = self.num_finished = self.num_loaded = 0

    async def start(self) -> None:
        self.memory = FakeMemory()
        self.scheduler = Scheduler(CONFIG)
        self.index = PrefixIndex()
        self.tiers = KVTiers(
            tier_setups(self.folder, self.min_uses),
            self.scheduler.pool,
            self.memory,
            self.publish,
            policy=EagerPolicy(block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES),
        )
        self.link = TierLink(self.scheduler, self.tiers, lambda: None)
        await self.tiers.start()
        for found in (*self.scheduler.pool.snapshot(), *self.tiers.snapshot()):
            assert self.index.apply(0, found)

    def publish(self) -> None:
        for found in (*self.scheduler.pool.take_events(), *self.tiers.take_events()):
            assert self.index.apply(0, found), found

    async def add(self, prompt: list[int], max_tokens: int, salt: str | None) -> None:
        self.num_made += 1
        request = make_request(
            f"r{self.num_made}", prompt, max_tokens=max_tokens, cache_salt=salt, priority=self.num_made % 2
        )
        self.note_truth(request)
        keys, is_onboarding = await self.link.look_up(request)
        with contextlib.suppress(InvalidRequest):
            self.scheduler.add(request, keys, is_onboarding=is_onboarding)
            self.requests[request.request_id] = request
            self.outputs[request.request_id] = []

    def note_truth(self, request: GenerateRequest) -> None:
        tokens = [*request.token_ids(), *expected_output(request, CONFIG)[0]]
        root = cache_root(CONFIG.cache_namespace, cache_salt=request.cache_salt)
        numbers = np.array(chain(request, tokens), dtype=np.uint64)
        for place, key in enumerate(cache_keys(pack_tokens(tokens), BLOCK_SIZE, root=root)):
            self.truth[key] = numbers[place * BLOCK_SIZE : (place + 1) * BLOCK_SIZE].tobytes()

    async def check_tiers(self) -> None:
        """What lies in them is what belongs under its key."""
        await self.tiers.wait_idle()
        for number, tier in enumerate(self.tiers.tiers):
            for key in list(self.tiers._contents._tiers[number].held):
                block = await tier.store.get(key)
                assert block is None or block == self.truth[key]

    async def step(self) -> bool:
        """Whether there was anything to compute. Loads go on meanwhile."""
        step = self.scheduler.schedule()
        for onboarding in step.onboarding:
            self.link.begin(onboarding)
        if step.sequences:
            await asyncio.sleep(0)
            sampled = self.memory.forward(step)
            for update in self.scheduler.complete(step, sampled):
                tokens, reason = expected_output(self.requests[update.request_id], CONFIG)
                output = self.outputs[update.request_id]
                assert update.token_id == tokens[len(output)]
                output.append(update.token_id)
                assert update.finish_reason == (reason if len(output) == len(tokens) else None)
                if update.finish_reason is not None:
                    del self.requests[update.request_id]
                    self.num_finished += 1
        self.publish()
        self.link.collect()
        return bool(step.sequences)

    async def abort(self, number: int) -> None:
        for request_id in sorted(self.requests)[number : number + 1]:
            await self.link.cancel(request_id)
            assert self.scheduler.abort(request_id)
            del self.requests[request_id]

    async def loads(self) -> None:
        """Until nobody loads any more."""
        if self.link._loads:
            await asyncio.wait(self.link._loads.values())
        assert not any(self.scheduler.state_of(name) is SequenceState.LOADING for name in self.requests)

    async def lose(self, tier: int, every: int) -> None:
        store = self.tiers.tiers[tier].store
        held = list(self.tiers._contents._tiers[tier].held)
        await store.delete(held[::every])

    def damage(self) -> None:
        """Bytes on the disk change, its table does not."""
        path = self.folder / "blocks"
        if path.exists() and path.stat().st_size > 4096:
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(b"\x55\xaa\x55")

    async def restart(self) -> None:
        for request_id in list(self.requests):
            await self.abort(0)
            assert request_id
        self.count_loaded()
        await self.link.close()
        await self.start()

    def count_loaded(self) -> None:
        for tier in self.tiers.statistics().tiers:
            self.num_loaded += tier.counts.num_onboarded_blocks

    async def finish(self) -> None:
        for _ in range(3000):
            if not await self.step():
                if not self.requests:
                    break
                await self.loads()
        assert not self.requests
        assert self.scheduler.pool.num_free_blocks == NUM_BLOCKS
        await self.check_tiers()
        self.index.check_integrity()


prompts = st.builds(
    lambda token, length, tail: [token] * length + tail,
    st.integers(0, 1),
    st.sampled_from([3, 9, 12]),
    st.lists(st.integers(0, 2), max_size=1),
)
operations = st.one_of(
    st.tuples(st.just("add"), prompts, st.integers(1, 5), st.sampled_from([None, None, "tenant"])),
    st.tuples(st.just("add"), prompts, st.integers(1, 5), st.none()),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
    st.tuples(st.just("turn")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("forget")),
    st.tuples(st.just("idle")),
    st.tuples(st.just("loads")),
    st.tuples(st.just("abort"), st.integers(0, 4)),
    st.tuples(st.just("forget")),
    st.tuples(st.just("lose"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("damage")),
    st.tuples(st.just("restart")),
)


async def run(steps: Sequence[tuple[Any, ...]], folder: Path, min_uses: int) -> Worker:
    worker = Worker(folder, min_uses)
    await worker.start()
    try:
        for name, *values in steps:
            match name:
                case "add":
                    await worker.add(*values)
                case "step":
                    await worker.step()
                case "turn":
                    await asyncio.sleep(0)
                case "idle":
                    await worker.check_tiers()
                case "finish":
                    await worker.finish()
                case "loads":
                    await worker.loads()
                case "abort":
                    await worker.abort(*values)
                case "forget":
                    worker.publish()
                    worker.scheduler.reset_prefix_cache()
                    for found in worker.scheduler.pool.take_events():
                        assert worker.index.apply(0, found)
                case "lose":
                    await worker.lose(*values)
                case "damage":
                    worker.damage()
                case "restart":
                    await worker.restart()
            worker.scheduler.check_integrity()
        await worker.finish()
        worker.count_loaded()
    finally:
        await worker.link.close()
    return worker


@pytest.mark.slow
@pytest.mark.timeout(400)
@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(operations, min_size=40, max_size=80), min_uses=st.integers(0, 2))
def test_random_operations(steps: list[tuple[Any, ...]], min_uses: int) -> None:
    """At least 10,000 operations."""
    folder = Path(tempfile.mkdtemp())
    try:
        worker = asyncio.run(run(steps, folder, min_uses))
        event("loaded" if worker.num_loaded else "nothing loaded")
    finally:
        shutil.rmtree(folder)
