"""What this distribution offers. Imported wherever the command line runs, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator

from dynamo_sdk.plugins import EngineDescriptor, KVConnectorDescriptor, hookimpl
from dynamo_sdk.types import Role
from dynamo_sdk.types.plan import DeploymentPlan

CONNECTOR = "vllm-nixl"


@hookimpl
def dynamo_sdk_engines() -> list[EngineDescriptor]:
    return [
        EngineDescriptor(
            name="vllm",
            factory="dynamo_sdk_vllm.engine:VllmEngine",
            config="dynamo_sdk_vllm.config:VllmConfig",
            roles=tuple(Role),
            connectors=(CONNECTOR,),
            block_size_arg="block_size",
            takes_kv_tiers=True,
            requirement="dynamo-sdk-vllm[engine]",
            summary="vLLM's AsyncLLM in the worker's process",
        ),
        EngineDescriptor(
            name="vllm-remote",
            factory="dynamo_sdk_vllm.remote:VllmRemoteEngine",
            config="dynamo_sdk_vllm.remote:VllmRemoteConfig",
            summary="a vLLM server that runs already, by its URL, with its KV events",
        ),
    ]


@hookimpl
def dynamo_sdk_kv_connectors() -> list[KVConnectorDescriptor]:
    return [
        KVConnectorDescriptor(
            name=CONNECTOR,
            factory="dynamo_sdk_vllm.handover:VllmNixlConnector",
            summary="vLLM's NixlConnector: decode pulls the prompt's KV from prefill",
        ),
    ]


@hookimpl
def dynamo_sdk_check_plan(plan: DeploymentPlan) -> Iterator[str]:
    """What vLLM would refuse minutes later, when it starts."""
    tiers = {model.spec.name: model.kv_tiers for model in plan.models}
    for service in plan.services:
        if service.engine is None or service.engine.name != "vllm":
            continue
        num_ranks = service.engine.args.get("data_parallel_size", 1)
        for tier in tiers.get(service.model or "", ()):
            if tier.kind == "shared" and num_ranks != 1:
                yield (
                    f"tier {tier.name!r}: service {service.name} has data_parallel_size: {num_ranks}, and "
                    "ranks are not read by other workers; remove the tier, or have replicas instead of ranks"
                )
