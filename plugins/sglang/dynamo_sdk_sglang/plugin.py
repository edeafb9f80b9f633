"""What this distribution offers. Imported wherever the command line runs, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dynamo_sdk.plugins import EngineDescriptor, KVConnectorDescriptor, hookimpl
from dynamo_sdk.types import Role
from dynamo_sdk.types.plan import DeploymentPlan, KVTierPlan

CONNECTOR = "sglang"
_BELOW_RAM = ("disk", "s3")


@hookimpl
def dynamo_sdk_engines() -> list[EngineDescriptor]:
    return [
        EngineDescriptor(
            name="sglang",
            factory="dynamo_sdk_sglang.engine:SglangEngine",
            config="dynamo_sdk_sglang.config:SglangConfig",
            roles=tuple(Role),
            connectors=(CONNECTOR,),
            block_size_arg="page_size",
            takes_kv_tiers=True,
            requirement="dynamo-sdk-sglang[engine]",
            summary="SGLang's Engine, in a process beside the worker's",
        ),
    ]


@hookimpl
def dynamo_sdk_kv_connectors() -> list[KVConnectorDescriptor]:
    return [
        KVConnectorDescriptor(
            name=CONNECTOR,
            factory="dynamo_sdk_sglang.handover:SglangConnector",
            summary="SGLang's own hand-over: both legs start at once and meet in a room",
        ),
    ]


@hookimpl
def dynamo_sdk_check_plan(plan: DeploymentPlan) -> Iterator[str]:
    """What would be refused or of no use later, when SGLang starts, as far as the kinds of tiers say it;
    decode workers use no tiers."""
    tiers = {model.spec.name: model.kv_tiers for model in plan.models}
    for service in plan.services:
        if service.engine is None or service.engine.name != "sglang" or service.role is Role.DECODE:
            continue
        for objection in _against(tiers.get(service.model or "", ())):
            yield f"kv.tiers: engine 'sglang' of service {service.name} {objection}"


def _against(tiers: Sequence[KVTierPlan]) -> Iterator[str]:
    kinds = [tier.kind for tier in tiers]
    if "shared" in kinds:
        yield "reads no blocks of other workers; remove the tier 'shared'"
        kinds = [kind for kind in kinds if kind != "shared"]
    if len(kinds) > 2 or "ram" in kinds[1:] or (kinds and kinds[0] in _BELOW_RAM):
        yield f"takes one tier in RAM, and at most one more below it; it has {', '.join(kinds)}"
    if any(tier.min_priority is not None for tier in tiers):
        yield "knows no priorities; remove min_priority"
