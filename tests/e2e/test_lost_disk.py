"""A disk that is gone costs a worker its tier, and nobody the worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import anyio
import pytest

from .asking import assert_same, client_of, complete, completion, decided, random_tokens
from .running import GRAPHS
from .serving import Served, Watch, serve

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_a_worker_whose_disk_is_gone_comes_back_without_it(aggregated: Served, tmp_path: Path) -> None:
    rng = Random(5)
    asked = [completion(random_tokens(rng, 300), 8) for _ in range(8)]
    bodies, expected = await decided(aggregated.url, asked, 4)
    tier = f"kv.tiers=[{{kind: disk, capacity: 64MiB, min_uses: 0, path: {tmp_path}}}]"
    small = "services.Whole.args.num_blocks=100"
    with serve(f"{GRAPHS}:aggregated", "--set", tier, "--set", small) as served:
        async with Watch(served.address) as watch, client_of(served.url) as client:
            await watch.wait_until(lambda: len(watch.ready("Whole")) == 1)
            (first,) = watch.ready("Whole")
            assert_same([await complete(client, body) for body in bodies], expected)
            (tmp_path / "Whole-0").rename(tmp_path / "gone")
            (tmp_path / "Whole-0").write_text("not a folder")
            os.kill(first.pid, signal.SIGKILL)
            with anyio.fail_after(60):
                await watch.wait_until(lambda: is_replaced(watch, first.worker_id))
            assert_same([await complete(client, body) for body in bodies], expected)


def is_replaced(watch: Watch, worker_id: str) -> bool:
    return any(record.worker_id != worker_id for record in watch.ready("Whole"))
