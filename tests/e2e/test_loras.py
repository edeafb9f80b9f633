"""LoRA adapters of real weights, disaggregated, on real processes: the answers of merged weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from dynamo_sdk.runtime.model_path import resolve_model_path
from tests.engines.torch.adapters import merged, save_adapter
from tests.engines.torch.models import greedy_reference, load_reference

from .asking import client_of
from .running import GRAPHS
from .serving import serve

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PROMPT = [9 * token % 900 + 20 for token in range(120)]
NUM_TOKENS = 12


async def test_adapters_are_routed_handed_over_and_replaced(tmp_path: Path) -> None:
    demo = resolve_model_path("demo")
    reference = load_reference(demo)
    sql, poet = (
        save_adapter(reference, tmp_path / name, seed=seed) for seed, name in enumerate(("sql", "poet"))
    )
    expected = {
        name: greedy_reference(model, PROMPT, NUM_TOKENS)
        for name, model in (("demo", reference), ("sql", merged(demo, sql)), ("poet", merged(demo, poet)))
    }
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    settings = [
        "model.path=demo", f"model.loras.sql={sql.path}", "router=kv",
        "services.Api.args.lora_endpoints=true", "services.Prefill.replicas=2",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    with serve(f"{GRAPHS}:graph", *words) as served:
        async with client_of(served.url) as client:

            async def ask(model: str) -> tuple[int, list[int], int]:
                """Status, tokens, and how many of the prompt were cached."""
                body = {
                    "model": model, "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0,
                    "ignore_eos": True, "return_token_ids": True,
                }  # fmt: skip
                answer = await client.post("/v1/completions", json=body)
                if answer.status_code != 200:
                    return answer.status_code, [], 0
                usage = answer.json()["usage"]["prompt_tokens_details"]
                return 200, answer.json()["choices"][0]["token_ids"], usage["cached_tokens"]

            async def ask_until_known(model: str) -> tuple[int, int]:
                """Cached blocks of the prompt where the router sent it, and how many of its tokens were
                cached there: of the first request that went where any were. On a busy machine a worker may
                be faster that has none."""
                body = {"model": model, "prompt": PROMPT, "max_tokens": 2, "dynamo": {"explain": True}}
                while True:
                    document = (await client.post("/v1/completions", json=body)).raise_for_status().json()
                    choice = next(one for one in document["dynamo"]["explain"] if one["pool"] == "prefill")
                    known = {one["worker"]: one.get("num_cached_blocks", 0) for one in choice["candidates"]}
                    if known[choice["worker"]]:
                        cached = document["usage"]["prompt_tokens_details"]["cached_tokens"]
                        return known[choice["worker"]], cached

            async def change(what: str, **body: str) -> int:
                return (await client.post(f"/v1/{what}_lora_adapter", json=body)).status_code

            assert await ask("demo") == (200, expected["demo"], 0)
            assert await ask("sql") == (200, expected["sql"], 0)
            with anyio.fail_after(60):
                assert await ask_until_known("sql") == (7, 112), "routed to where its KV is"
            assert (await ask("sql"))[1] == expected["sql"]
            together = await asyncio.gather(*(ask(name) for name in ("demo", "sql") * 8))
            assert [tokens for _, tokens, _ in together] == [expected["demo"], expected["sql"]] * 8
            assert (await ask("poet"))[0] == 404
            assert await change("load", lora_name="poet", lora_path=poet.path) == 200
            assert (await ask("poet"))[1] == expected["poet"]
            assert await change("load", lora_name="sql", lora_path=poet.path) == 400
            assert await change("unload", lora_name="sql") == 200
            assert (await ask("sql"))[0] == 404
            assert await change("load", lora_name="sql", lora_path=poet.path) == 200
            assert (await ask("sql"))[1] == expected["poet"], "no KV of the old weights"
            health = (await client.get("/health")).json()
            assert "adapters: poet, sql" in health["details"]["demo"]
