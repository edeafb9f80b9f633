"""What this distribution offers. Imported wherever the command line runs, so it imports nothing heavy."""

from __future__ import annotations

from dynamo_sdk.plugins import EngineDescriptor, KVConnectorDescriptor, hookimpl
from dynamo_sdk.types import Role

CONNECTOR = "trtllm"


@hookimpl
def dynamo_sdk_engines() -> list[EngineDescriptor]:
    return [
        EngineDescriptor(
            name="trtllm",
            factory="dynamo_sdk_trtllm.engine:TensorRTEngine",
            config="dynamo_sdk_trtllm.config:TensorRTConfig",
            roles=tuple(Role),
            connectors=(CONNECTOR,),
            requirement="dynamo-sdk-trtllm[engine]",
            summary="TensorRT-LLM's LLM in the worker's process; experimental, never run on the real engine",
        ),
    ]


@hookimpl
def dynamo_sdk_kv_connectors() -> list[KVConnectorDescriptor]:
    return [
        KVConnectorDescriptor(
            name=CONNECTOR,
            factory="dynamo_sdk_trtllm.handover:TensorRTConnector",
            summary="TensorRT-LLM's cache transceiver: decode pulls the prompt's KV from prefill",
        ),
    ]
