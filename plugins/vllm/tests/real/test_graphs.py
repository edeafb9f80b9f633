"""``dynamo-sdk run`` with vLLM, from an environment that has only the plugin, and the official client.

``LIGHT_PYTHON``: the interpreter of that environment; without it, the one of these tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from dynamo_sdk.types import LoraSpec

from .adapters import greedy_of, make_adapter, merged
from .conftest import SMALL

GRAPHS = Path(__file__).parent / "graphs.py"
LIGHT_PYTHON = os.environ.get("LIGHT_PYTHON", sys.executable)
ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "block_size": 32,
    "num_gpu_blocks_override": 64,
    "max_num_seqs": 8,
    "environment": SMALL,
}
PROMPT = [7 * token % 1000 + 10 for token in range(200)]
STOP_TIMEOUT_S = 60.0


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
    """From ready to a polite stop, which must leave no process behind."""
    services = {
        name: {"engine": "vllm", "python": sys.executable, "replicas": count, "args": dict(args)}
        for name, count in replicas.items()
    }
    deploy = tmp_path / "deploy.yaml"
    model = {"path": "demo", "name": "demo", "loras": {lora.name: lora.path for lora in loras}}
    document = {"model": model, "services": services, "router": router, "kv": kv or {}}
    deploy.write_text(json.dumps(document))
    main = "from dynamo_sdk.cli import main; main()"
    process = subprocess.Popen(
        [LIGHT_PYTHON, "-c", main, "run", f"{GRAPHS}:{graph}", "-f", str(deploy), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    tree: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), f"{line!r}, exit code {process.poll()}"
        tree = psutil.Process(process.pid).children(recursive=True)
        yield openai.OpenAI(base_url=f"{line.split()[1]}/v1", api_key="none")
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0
        _, alive = psutil.wait_procs(tree, timeout=5)
        assert not alive
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def complete(
    client: openai.OpenAI, prompt: list[int] = PROMPT, *, model: str = "demo", **sampling: object
) -> openai.types.Completion:
    body = {"ignore_eos": True, "return_token_ids": True}
    options = {"max_tokens": 24, "temperature": 0, **sampling}
    return client.completions.create(model=model, prompt=prompt, extra_body=body, **options)  # type: ignore[call-overload]


def token_ids(answer: openai.types.Completion) -> list[int]:
    extra = answer.choices[0].model_extra
    assert extra is not None
    return extra["token_ids"]


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
        first = complete(client)
        for _ in range(4):
            again = complete(client)
            assert again.usage is not None
            assert again.usage.prompt_tokens_details is not None
            assert again.usage.prompt_tokens_details.cached_tokens == 192, "it went where its KV is"
            assert token_ids(again) == token_ids(first)
        assert num_blocks_in_ram(client) >= 6
        return {
            "greedy": token_ids(first),
            "sampled": token_ids(complete(client, temperature=1, seed=3)),
        }


@pytest.mark.parametrize("num_prefill", [1, 2])
def test_disaggregated_is_aggregated(num_prefill: int, expected: dict[str, list[int]], tmp_path: Path):
    loud = make_adapter(tmp_path / "loud")
    adapted = greedy_of(merged(loud), PROMPT)
    with running(tmp_path, "disaggregated", Prefill=num_prefill, Decode=1, loras=[loud]) as client:
        assert {model.id for model in client.models.list()} == {"demo", "loud"}
        for _ in range(3):
            assert token_ids(complete(client)) == expected["greedy"]
            assert token_ids(complete(client, model="loud", max_tokens=len(adapted))) == adapted
        assert token_ids(complete(client, temperature=1, seed=3)) == expected["sampled"]
        chat = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "What is a KV block?"}],
            max_tokens=32,
            temperature=0,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chat if chunk.choices)
        assert len(text.split()) > 3
