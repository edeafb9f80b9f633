"""``dynamo-sdk run`` with SGLang, from an environment that has only the plugins, and the official client.

``LIGHT_PYTHON``: see ``real_engines.served``.
``VLLM_PYTHON``: one that has vLLM, for the graph with both engines; without it, that is not run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from dynamo_sdk.launch.processes import MARK_VARIABLE
from real_engines.served import GRAPHS, answers_of_aggregated, check_answers, complete, running, token_ids

from .conftest import ARGS, has_gpu

EXAMPLES = Path(__file__).parents[4] / "examples"
VLLM_PYTHON = os.environ.get("VLLM_PYTHON")
SGLANG_ARGS = {**ARGS, "max_total_tokens": 2048}
ONE_MODEL = {"model": {"path": "demo", "name": "demo"}}


def on_sglang(**replicas: int) -> dict[str, object]:
    services = {
        name: {"engine": "sglang", "python": sys.executable, "replicas": count, "args": SGLANG_ARGS}
        for name, count in replicas.items()
    }
    return {**ONE_MODEL, "services": services}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    folder = tmp_path_factory.mktemp("aggregated")
    with running(folder, f"{GRAPHS}:aggregated", on_sglang(Whole=2)) as (client, _):
        return answers_of_aggregated(client)


@pytest.mark.parametrize("num_prefill", [1, 2])
def test_disaggregated_is_aggregated(num_prefill: int, expected: dict[str, list[int]], tmp_path: Path):
    deploy = on_sglang(Prefill=num_prefill, Decode=1)
    with running(tmp_path, f"{GRAPHS}:disaggregated", deploy) as (client, tree):
        check_answers(client, expected)
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
