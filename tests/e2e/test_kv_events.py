"""The KV events of workers in a running graph: what they serve is what an index can match."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.kv import PrefixIndex, prefix_keys
from dynamo_sdk.types import KVDigestBatch, pack_tokens

from .asking import client_of
from .graphs import Decode, Prefill, Whole, aggregated, graph

pytestmark = pytest.mark.anyio

MOCKER = {"engine": "mocker", "args": {"speedup_ratio": 1000.0, "block_size": 16, "dp_size": 2}}
PROMPT = list(range(1000, 1100))


async def first_batches(worker: Any) -> list[KVDigestBatch]:
    """A snapshot of each of its two ranks."""
    async with aclosing(worker.kv_events({})) as batches:
        return [await anext(batches), await anext(batches)]


def num_cached(batches: list[KVDigestBatch]) -> int:
    """How many blocks of ``PROMPT`` the ranks hold together."""
    index = PrefixIndex()
    for batch in batches:
        assert batch.is_snapshot
        for event in batch.digests:
            assert index.apply(batch.dp_rank, event)
    found = index.match(prefix_keys(pack_tokens(PROMPT), 16))
    return sum(overlap.device_blocks for overlap in found.values())


async def test_prefill_and_decode_workers_say_what_they_hold() -> None:
    deploy = {"models": {"m": {"path": "demo"}}, "services": {"Prefill": MOCKER, "Decode": MOCKER}}
    async with graph.local(deploy) as app, client_of(str(app.url)) as client:
        assert num_cached(await first_batches(app.client(Prefill))) == 0
        body = {"model": "m", "prompt": PROMPT, "max_tokens": 4}
        (await client.post("/v1/completions", json=body)).raise_for_status()
        for worker in (Prefill, Decode):
            assert num_cached(await first_batches(app.client(worker))) == len(PROMPT) // 16


async def test_a_worker_whose_engine_has_no_events_says_so() -> None:
    deploy = {"models": {"m": {"path": "demo"}}, "services": {"Whole": {"engine": "echo"}}}
    async with aggregated.local(deploy) as app:
        with pytest.raises(InvalidRequest, match="publishes no KV events"):
            await first_batches(app.client(Whole))
