"""Arguments for versions of vLLM that know more or less than this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.plugins import Registry
from dynamo_sdk.types import LoraSpec, ModelSpec, Role
from dynamo_sdk.types.plan import DeploymentPlan, Json, KVTierPlan, ModelPlan, PluginChoice, ServicePlan
from dynamo_sdk_vllm import plugin
from dynamo_sdk_vllm.adapters import lora_arguments
from dynamo_sdk_vllm.config import VllmConfig, engine_arguments
from dynamo_sdk_vllm.tiers.config import Shard, shard_of

SETUP = EngineSetup(model=ModelSpec(name="m", path="/models/m"), role=Role.AGGREGATED)


@dataclass
class OldEngineArgs:
    model: str
    max_num_seqs: int = 1
    enable_prefix_caching: bool = False
    enable_lora: bool = False


@dataclass
class NewEngineArgs(OldEngineArgs):
    served_model_name: str | None = None
    disable_log_stats: bool = False
    max_loras: int = 1
    kv_events_config: object = None


def test_ours_go_to_versions_that_know_them():
    config = VllmConfig.model_validate({"max_num_seqs": 4})
    ours = {"kv_events_config": "events", "enable_lora": True, "max_loras": 2}
    old = engine_arguments(OldEngineArgs, SETUP, config, **ours)
    assert old == {
        "model": "/models/m",
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_num_seqs": 4,
    }
    new = engine_arguments(NewEngineArgs, SETUP, config, **ours)
    assert new == old | {
        "served_model_name": "m",
        "disable_log_stats": True,
        "max_loras": 2,
        "kv_events_config": "events",
    }


@pytest.mark.parametrize(
    ("ranks", "wanted"), [([4], 8), ([8], 8), ([9, 4], 16), ([200], 256), ([300], 300), ([], 8)]
)
def test_there_is_room_for_the_adapters_of_the_deploy_file(ranks: list[int], wanted: int, tmp_path: Path):
    for number, rank in enumerate(ranks):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "adapter_config.json").write_text(f'{{"r": {rank}, "peft_type": "LORA"}}')
    folders = [tmp_path / f"{number}" for number in range(len(ranks))] or [tmp_path / "nowhere"]
    loras = [LoraSpec(name=folder.name, path=str(folder)) for folder in folders]
    assert lora_arguments(loras) == {
        "enable_lora": True,
        "max_loras": len(loras),
        "max_lora_rank": wanted,
    }


def test_the_deploy_file_goes_before_our_defaults():
    config = VllmConfig.model_validate({"enable_prefix_caching": False})
    assert engine_arguments(OldEngineArgs, SETUP, config)["enable_prefix_caching"] is False


def test_what_the_installed_version_does_not_know_is_the_users_mistake():
    config = VllmConfig.model_validate({"max_num_seq": 4})
    with pytest.raises(ConfigError, match=r"max_num_seq: .*did you mean 'max_num_seqs'"):
        engine_arguments(NewEngineArgs, SETUP, config)


@pytest.mark.parametrize("name", ["model", "kv_events_config", "disable_log_stats"])
def test_some_arguments_are_ours(name: str):
    registry = Registry.of(plugin)
    with pytest.raises(ConfigError, match=f"{name} cannot be set here"):
        registry.validate(registry.engines["vllm"], {name: "x"})


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("kind", ["shared", "disk"])
def test_ranks_of_data_parallelism_are_read_by_nobody(kind: str, num_ranks: int):
    args: dict[str, Json] = {"data_parallel_size": num_ranks, "tensor_parallel_size": 2}
    vllm = PluginChoice(name="vllm", args=args)
    plan = DeploymentPlan(
        target="graph.py",
        services=(
            ServicePlan(name="Worker", factory="m:Worker", engine=vllm, model="m"),
            ServicePlan(
                name="Other", factory="m:Other", engine=PluginChoice(name="torch", args=args), model="m"
            ),
        ),
        models=(
            ModelPlan(
                spec=SETUP.model,
                router=PluginChoice(name="kv"),
                kv_tiers=(KVTierPlan(name="ram", kind="ram"), KVTierPlan(name="second", kind=kind)),
            ),
        ),
    )
    said = [objection.message for objection in Registry.of(plugin).check_plan(plan)]
    refusal = (
        "tier 'second': service Worker has data_parallel_size: 2, and ranks are not read by other workers; "
        "remove the tier, or have replicas instead of ranks"
    )
    assert said == ([refusal] if kind == "shared" and num_ranks > 1 else [])


@pytest.mark.parametrize(
    ("parallel", "num_ranks", "shard"),
    [
        ({"world_size": 1, "data_parallel_size": 1, "data_parallel_index": 0}, 1, Shard()),
        # of a model without experts: each rank is told that it is alone
        ({"world_size": 1, "data_parallel_size": 1, "data_parallel_index": 0}, 2, Shard("rank-0-0", 2)),
        ({"world_size": 1, "data_parallel_size": 1, "data_parallel_index": 1}, 2, Shard("rank-1-0", 2)),
        ({"world_size": 1, "data_parallel_size": 2, "data_parallel_index": 1}, 2, Shard("rank-1-0", 2)),
        ({"world_size": 2, "data_parallel_size": 1, "data_parallel_index": 0}, 1, Shard("rank-0-1", 2)),
        ({"world_size": 2, "data_parallel_size": 2, "data_parallel_rank": 1}, 2, Shard("rank-1-1", 4)),
    ],
)
def test_processes_of_one_vllm_share_a_capacity_and_no_folder(
    parallel: dict[str, int], num_ranks: int, shard: Shard
):
    rank = parallel["world_size"] - 1
    given = {"data_parallel_rank": 0, "rank": rank, **parallel}
    assert shard_of(SimpleNamespace(**given), num_ranks) == shard
