"""A disaggregated graph with cache tiers, twice on one disk: the second finds what the first one left."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import httpx
import pytest

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.cli.kv import TierState, fetch, read_tiers
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker

pytestmark = pytest.mark.anyio


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


PROMPTS = [[token % 200 + first for token in range(150)] for first in (30, 31, 32)]


async def ask_all(deploy: dict[str, object]) -> tuple[list[str], list[int], TierState]:
    """The texts, how many prompt tokens were cached, and what the tiers say."""
    texts, cached = [], []
    async with Graph(Api, router="kv").local(deploy) as app:
        url = app.url or ""
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            for prompt in PROMPTS * 2:
                body = {"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                texts.append(answer.json()["choices"][0]["text"])
                cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        state = read_tiers(await anyio.to_thread.run_sync(fetch, url))
    return texts, cached, state


async def test_a_restarted_graph_finds_its_disk(tmp_path: Path) -> None:
    deploy: dict[str, object] = {
        "services": {name: {"args": {"num_blocks": 100, "device": "cpu"}} for name in ("Prefill", "Decode")}
    }
    expected, _, _ = await ask_all(deploy)
    disk = {"kind": "disk", "capacity": "64MiB", "path": str(tmp_path), "min_uses": 0}
    deploy["kv"] = {"tiers": [{"kind": "ram", "capacity": "32MiB"}, disk]}
    first, _, _ = await ask_all(deploy)
    second, cached, state = await ask_all(deploy)
    assert first == second == expected
    found = {place[0]: values for place, values in state.tiers.items() if place[2] == "disk"}
    assert found["Prefill"]["num_hits"] > 0
    assert (tmp_path / "Prefill-0" / "blocks").exists()
    assert (tmp_path / "Decode-0" / "blocks").exists()
    assert max(cached) >= 144
