"""``dynamo-sdk run`` with SGLang, from an environment that has only the plugins, and the official client.

``LIGHT_PYTHON``: the interpreter of that environment; without it, the one of these tests.
``VLLM_PYTHON``: one that has vLLM, for the graph with both engines; without it, that is not run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil
import pytest
import yaml

from dynamo_sdk.launch.processes import MARK_VARIABLE

from .conftest import ARGS, has_gpu

GRAPHS = Path(__file__).parent / "graphs.py"
EXAMPLES = Path(__file__).parents[4] / "examples"
LIGHT_PYTHON = os.environ.get("LIGHT_PYTHON", sys.executable)
VLLM_PYTHON = os.environ.get("VLLM_PYTHON")
SGLANG_ARGS = {**ARGS, "max_total_tokens": 2048}
PROMPT = [7 * token % 1000 + 10 for token in range(200)]
STOP_TIMEOUT_S = 60.0
ONE_MODEL = {"model": {"path": "demo", "name": "demo"}}


@contextmanager
def running(
    tmp_path: Path, graph: str, deploy: Mapping[str, object]
) -> Iterator[tuple[openai.OpenAI, list[psutil.Process]]]:
    """From ready to a polite stop, which must leave no process behind."""
    written = tmp_path / "deploy.yaml"
    written.write_text(json.dumps(deploy))
    main = "from dynamo_sdk.cli import main; main()"
    process = subprocess.Popen(
        [LIGHT_PYTHON, "-c", main, "run", graph, "-f", str(written), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), f"{line!r}, exit code {process.poll()}"
        tree = psutil.Process(process.pid).children(recursive=True)
        yield openai.OpenAI(base_url=f"{line.split()[1]}/v1", api_key="none"), tree
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0
        _, alive = psutil.wait_procs(tree, timeout=5)
        assert not alive
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def on_sglang(**replicas: int) -> dict[str, object]:
    services = {
        name: {"engine": "sglang", "python": sys.executable, "replicas": count, "args": SGLANG_ARGS}
        for name, count in replicas.items()
    }
    return {**ONE_MODEL, "services": services}


def complete(
    client: openai.OpenAI, prompt: list[int] = PROMPT, model: str = "demo", **sampling: object
) -> openai.types.Completion:
    body = {"ignore_eos": True, "return_token_ids": True}
    options = {"max_tokens": 24, "temperature": 0, **sampling}
    return client.completions.create(model=model, prompt=prompt, extra_body=body, **options)  # type: ignore[call-overload]


def token_ids(answer: openai.types.Completion) -> list[int]:
    extra = answer.choices[0].model_extra
    assert extra is not None
    return extra["token_ids"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Of two aggregated workers behind the KV router; the second time, the prompt is where it was."""
    folder = tmp_path_factory.mktemp("aggregated")
    with running(folder, f"{GRAPHS}:aggregated", on_sglang(Whole=2)) as (client, _):
        first = complete(client)
        for _ in range(4):
            again = complete(client)
            assert again.usage is not None
            assert again.usage.prompt_tokens_details is not None
            assert again.usage.prompt_tokens_details.cached_tokens == 192, "it went where its KV is"
            assert token_ids(again) == token_ids(first)
        return {
            "greedy": token_ids(first),
            "sampled": token_ids(complete(client, temperature=1, seed=3)),
        }


@pytest.mark.parametrize("num_prefill", [1, 2])
def test_disaggregated_is_aggregated(num_prefill: int, expected: dict[str, list[int]], tmp_path: Path):
    deploy = on_sglang(Prefill=num_prefill, Decode=1)
    with running(tmp_path, f"{GRAPHS}:disaggregated", deploy) as (client, tree):
        for _ in range(3):
            assert token_ids(complete(client)) == expected["greedy"]
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
        if num_prefill > 1:
            lose_sglang_of(tree, "Prefill.0")
            assert token_ids(complete(client)) == expected["greedy"], "the other one has done it"


def lose_sglang_of(tree: list[psutil.Process], worker: str) -> None:
    """What the worker runs is killed, and not the worker."""
    replicas = [process for process in tree if worker in process.environ().get(MARK_VARIABLE, "")]
    hosts = {
        process
        for replica in replicas
        for process in replica.children(recursive=True)
        if process.cmdline()[1:3] == ["-m", "dynamo_sdk_sglang.host"]
    }
    assert len(hosts) == 1
    for host in hosts:
        host.kill()


@pytest.mark.skipif(VLLM_PYTHON is None, reason="needs an environment with vLLM, too: make test-engines")
def test_a_model_on_vllm_and_one_on_sglang(tmp_path: Path):
    """The example: both have the same weights, so that the answers are the same."""
    deploy = yaml.safe_load((EXAMPLES / f"05_two_engines{'' if has_gpu() else '_cpu'}.yaml").read_text())
    services = deploy["services"]
    assert {name: service["engine"] for name, service in services.items()} == {
        "Expert": "vllm",
        "Parrot": "sglang",
    }
    services["Expert"]["python"] = VLLM_PYTHON
    services["Parrot"]["python"] = sys.executable
    with running(tmp_path, str(EXAMPLES / "05_two_models.py"), deploy) as (client, _):
        assert {model.id for model in client.models.list()} == {"on-vllm", "on-sglang"}
        answers = [complete(client, model=model) for model in ("on-vllm", "on-sglang")]
        assert token_ids(answers[0]) == token_ids(answers[1])
        assert answers[0].model == "on-vllm"
