"""``engine: vllm-remote`` and ``engine: openai`` in front of vLLM's own HTTP server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import anyio
import httpx
import pytest

from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import check_engine, generate_request, read_all
from dynamo_sdk.types import KVEventBatch, ModelSpec, Role, SamplingParams
from dynamo_sdk_vllm.remote import VllmRemoteConfig, VllmRemoteEngine
from real_engines.models import model_folder

from .conftest import SMALL

pytestmark = pytest.mark.anyio

SETUP = EngineSetup(model=ModelSpec(name="theirs", path=model_folder()), role=Role.AGGREGATED)
SWITCHES = ("--enforce-eager", "--enable-prompt-tokens-details")
START_TIMEOUT_S = 240


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("events")
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{folder}/events",
        "replay_endpoint": f"ipc://{folder}/replay",
    }
    port = free_port()
    options = {
        "model": model_folder(),
        "served-model-name": "theirs",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": 512,
        "block-size": 32,
        "num-gpu-blocks-override": 64,
        "max-num-seqs": 8,
        "kv-events-config": json.dumps(events),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *SWITCHES],
        env={**os.environ, **SMALL},
    )
    try:
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not is_up(f"http://127.0.0.1:{port}"):
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < give_up_s, "the server does not come up"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


async def test_it_says_its_facts_and_its_events(url: str):
    engine = VllmRemoteEngine(SETUP, VllmRemoteConfig(url=url))
    try:
        facts = await engine.start()
        assert (facts.context_length, facts.block_size, facts.dp_size) == (512, 32, 1)
        has_come = anyio.Event()

        def listen(batch: KVEventBatch) -> None:
            has_come.set()

        engine.subscribe_kv_events(listen)
        prompt = [11 * token % 900 + 20 for token in range(100)]
        sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=2)
        first = await read_all(engine, generate_request(prompt, sampling))
        with anyio.fail_after(10):
            await has_come.wait()
        again = await read_all(engine, generate_request(prompt, sampling))
        assert again.token_ids == first.token_ids
        assert again.usage is not None
        assert again.usage.num_cached_tokens == 96
        (snapshot,) = engine.kv_snapshot()
        assert len(snapshot.events) >= 3
    finally:
        await engine.close()


async def test_it_keeps_the_contract(url: str):
    """And so does ``openai``, which is this engine without the events."""

    def engine(role: Role, url: str = url) -> VllmRemoteEngine:
        return VllmRemoteEngine(SETUP, VllmRemoteConfig(url=url))

    nowhere = "http://127.0.0.1:9"
    report = await check_engine(
        engine, roles=[Role.AGGREGATED], vocab_size=1000, unstartable=lambda role: engine(role, nowhere)
    )
    print(report)  # noqa: T201
    report.raise_if_failed()
