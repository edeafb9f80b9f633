"""The contract, checked against the stand-in that is made from it, and against stand-ins that break it."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tensorrt_llm import World

from dynamo_sdk_trtllm.contract import load_contract, main, report, verify

NEVER_RUN = (
    "never executed against the real engine by us: TensorRT-LLM is not installed here, and needs a GPU"
)


def test_each_fact_names_its_source():
    contract = load_contract()
    for fact in (*contract.callables, *contract.records):
        assert fact.sources
        assert set(fact.sources) <= set(contract.sources)
    for belief in contract.beliefs:
        named = belief.rpartition("[")[2].rstrip("]").split(", ")
        assert set(named) <= {*contract.sources, "guess"}


def test_the_stand_in_keeps_it(world: World):
    contract = load_contract()
    findings = verify(contract)
    assert findings.broken == []
    assert findings.version.startswith(world.version)
    assert findings.num_names >= 12
    text = report(contract, findings)
    assert "kept" in text
    assert f"{findings.num_parameters} parameters" in text
    assert all(belief in text for belief in contract.beliefs)


def broken_module(name: str, **members: object) -> Any:
    """``tensorrt_llm.llmapi`` with other members."""

    def load(module: str) -> Any:
        found = importlib.import_module(module)
        return SimpleNamespace(**{**vars(found), **members}) if module == name else found

    return load


class SamplingWithoutSeed:
    def __init__(self, max_tokens: int = 32, temperature: float | None = None) -> None: ...


class SchedulingWithMore:
    def __init__(self, attention_dp_rank: int, attention_dp_relax: bool, tenant: str) -> None: ...


class CacheWithOtherDefault:
    def __init__(
        self, enable_block_reuse: bool = False, event_buffer_max_size: int = 0, tokens_per_block: int = 64
    ) -> None: ...


def test_a_parameter_that_is_gone_breaks_it(world: World):
    load = broken_module("tensorrt_llm.llmapi", SamplingParams=SamplingWithoutSeed)
    broken = verify(load_contract(), load).broken
    assert "tensorrt_llm.llmapi:SamplingParams has no seed" in broken


def test_a_name_that_is_gone_breaks_it(world: World):
    load = broken_module("tensorrt_llm.llmapi", DisaggregatedParams=None)
    assert verify(load_contract(), load).broken == ["there is no tensorrt_llm.llmapi:DisaggregatedParams"]


def test_what_cannot_be_seen_is_said(world: World):
    load = broken_module("tensorrt_llm.executor.result", Logprob=object())
    findings = verify(load_contract(), load)
    assert findings.broken == []
    assert "the signature of tensorrt_llm.executor.result:Logprob" in findings.open_questions


def test_a_new_required_parameter_breaks_it(world: World):
    load = broken_module("tensorrt_llm.scheduling_params", SchedulingParams=SchedulingWithMore)
    [broken] = verify(load_contract(), load).broken
    assert broken.endswith("requires tenant, which is not given")


def test_another_default_is_said_and_breaks_nothing(world: World):
    load = broken_module("tensorrt_llm.llmapi", KvCacheConfig=CacheWithOtherDefault)
    findings = verify(load_contract(), load)
    assert findings.broken == []
    assert "tensorrt_llm.llmapi:KvCacheConfig: tokens_per_block is 64, not 32" in findings.differs


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is here")
def test_without_the_package_nothing_is_claimed(capsys: pytest.CaptureFixture[str]):
    assert main() == 2
    assert capsys.readouterr().out.startswith("nothing was checked: tensorrt_llm cannot be imported here")


def test_the_command_says_what_it_did(world: World, capsys: pytest.CaptureFixture[str]):
    assert main() == 0
    assert "not checked, because only a running engine shows it:" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is None, reason=NEVER_RUN)
def test_the_installed_version_keeps_it():
    contract = load_contract()
    findings = verify(contract)
    assert findings.broken == [], report(contract, findings)
