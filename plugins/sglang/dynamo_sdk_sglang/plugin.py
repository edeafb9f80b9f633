"""What this distribution offers. Imported wherever the command line runs, so it imports nothing heavy."""

from __future__ import annotations

from dynamo_sdk.plugins import EngineDescriptor, KVConnectorDescriptor, hookimpl
from dynamo_sdk.types import Role

CONNECTOR = "sglang"


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
