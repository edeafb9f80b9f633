"""``dynamo-sdk run`` with vLLM, from an environment that has only the plugin, and the official client.

``LIGHT_PYTHON``: see ``real_engines.served``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from dynamo_sdk.types import LoraSpec
from real_engines import served
from real_engines.adapters import make_adapter, merged
from real_engines.models import greedy_of
from real_engines.served import GRAPHS, PROMPT, answers_of_aggregated, check_answers, complete, token_ids

from .conftest import SMALL

ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "block_size": 32,
    "num_gpu_blocks_override": 64,
    "max_num_seqs": 8,
    "environment": SMALL,
}
RAM_TIER = {"tiers": [{"kind": "ram", "capacity": "64MiB"}]}


@contextmanager
def running(
    tmp_path: Path,
    graph: str,
    *,
    loras: Iterable[LoraSpec] = (),
    kv: dict[str, object] | None = None,
    router: object = "kv",
    args: Mapping[str, object] = ARGS,
    **replicas: int,
) -> Iterator[openai.OpenAI]:
    """See ``served.running``."""
    services = {
        name: {"engine": "vllm", "python": sys.executable, "replicas": count, "args": dict(args)}
        for name, count in replicas.items()
    }
    model = {"path": "demo", "name": "demo", "loras": {lora.name: lora.path for lora in loras}}
    deploy = {"model": model, "services": services, "router": router, "kv": kv or {}}
    with served.running(tmp_path, f"{GRAPHS}:{graph}", deploy) as (client, _):
        yield client


def num_blocks_in_ram(client: openai.OpenAI) -> float:
    """Of all workers, as vLLM said with its last step."""
    text = httpx.get(str(client.base_url.join("/metrics"))).text
    lines = [line for line in text.splitlines() if line.startswith("kvbm_blocks{") and 'tier="ram"' in line]
    return sum(float(line.split()[-1]) for line in lines)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Of two aggregated workers with a RAM tier behind the KV router; the second time, the prompt is where
    it was."""
    with running(tmp_path_factory.mktemp("aggregated"), "aggregated", kv=RAM_TIER, Whole=2) as client:
        answers = answers_of_aggregated(client)
        assert num_blocks_in_ram(client) >= 6
        return answers


@pytest.mark.parametrize("num_prefill", [1, 2])
def test_disaggregated_is_aggregated(num_prefill: int, expected: dict[str, list[int]], tmp_path: Path):
    loud = make_adapter(tmp_path / "loud")
    adapted = greedy_of(merged(loud), PROMPT)
    with running(tmp_path, "disaggregated", Prefill=num_prefill, Decode=1, loras=[loud]) as client:
        assert {model.id for model in client.models.list()} == {"demo", "loud"}
        for _ in range(3):
            assert token_ids(complete(client, model="loud", max_tokens=len(adapted))) == adapted
        check_answers(client, expected)
