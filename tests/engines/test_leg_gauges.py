from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines.leg_gauges import LegGauges

pytestmark = pytest.mark.anyio


class Gauges(LegGauges[str]):
    def num_free_blocks(self, now_s: float) -> int:
        return self.num_blocks - self.num_active


async def test_a_leg_waits_until_it_has_a_token_and_counts_until_it_leaves():
    gauges = Gauges()
    gauges.num_blocks = 10
    gauges.enter("a", num_tokens=7)
    gauges.enter("b", num_tokens=5)
    gauges.saw_token("a")
    gauges.saw_token("a")
    load = gauges.snapshot(3.0)
    assert (load.num_running, load.num_waiting, load.num_waiting_tokens) == (1, 1, 5)
    assert (load.at_s, load.num_free_blocks, load.num_blocks) == (3.0, 8, 10)
    assert gauges.names == ["b", "a"]
    gauges.leave("a")
    gauges.leave("a")
    gauges.saw_token("a")
    assert gauges.names == ["b"]


async def test_idle_is_when_the_last_leg_has_left():
    gauges = Gauges()
    await gauges.wait_idle()
    seen: list[list[str]] = []

    async def wait() -> None:
        await gauges.wait_idle()
        seen.append(gauges.names)

    async with anyio.create_task_group() as tasks:
        gauges.enter("a", num_tokens=1)
        gauges.enter("b", num_tokens=1)
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        for name in ("a", "b"):
            await checkpoint()
            assert not seen
            gauges.leave(name)
    assert seen == [[], []]
