"""Our own plugins, through the same hooks as everybody's. Import strings only: nothing is loaded here."""

from __future__ import annotations

from dynamo_sdk.types import KVTier, Role

from .descriptors import (
    DiscoveryDescriptor,
    EngineDescriptor,
    KVConnectorDescriptor,
    KVStoreDescriptor,
    LauncherDescriptor,
    RouterDescriptor,
)
from .markers import hookimpl


@hookimpl
def dynamo_sdk_engines() -> list[EngineDescriptor]:
    return [
        EngineDescriptor(
            name="echo",
            factory="dynamo_sdk.engines.echo:EchoEngine",
            config="dynamo_sdk.engines.echo:EchoConfig",
            roles=tuple(Role),
            connectors=("stateless",),
            summary="gives the prompt back, token by token; for tests and first steps",
        ),
        EngineDescriptor(
            name="mocker",
            factory="dynamo_sdk.engines.mocker.engine:MockerEngine",
            config="dynamo_sdk.engines.mocker.config:MockerConfig",
            roles=tuple(Role),
            connectors=("stateless",),
            block_size_arg="block_size",
            default_block_size=64,
            takes_kv_tiers=True,
            summary="simulates a GPU's timing, blocks and batches; for benchmarks and simulation",
        ),
        EngineDescriptor(
            name="openai",
            factory="dynamo_sdk.engines.openai.engine:OpenAIEngine",
            config="dynamo_sdk.engines.openai.config:OpenAIConfig",
            summary="a server that runs already, by its URL: vLLM, dynamo_sdk, whoever gives token ids back",
        ),
        EngineDescriptor(
            name="torch",
            factory="dynamo_sdk.engines.torch.engine:TorchEngine",
            config="dynamo_sdk.engines.torch.config:TorchConfig",
            roles=tuple(Role),
            connectors=("direct",),
            block_size_arg="block_size",
            default_block_size=16,
            takes_kv_tiers=True,
            requirement="dynamo-sdk[torch]",
            summary="runs Hugging Face style models in PyTorch, on CPU and CUDA",
        ),
    ]


@hookimpl
def dynamo_sdk_routers() -> list[RouterDescriptor]:
    return [
        RouterDescriptor(
            name="kv",
            factory="dynamo_sdk.routing.kv:KvRouter",
            config="dynamo_sdk.routing.config:KvConfig",
            summary="where the request costs least time, with what is cached there",
        ),
        RouterDescriptor(
            name="dynamo-kv",
            factory="dynamo_sdk.routing.dynamo_kv:DynamoKvRouter",
            config="dynamo_sdk.routing.config:DynamoKvConfig",
            summary="the documented cost of NVIDIA Dynamo's KV router, to compare with",
        ),
        RouterDescriptor(
            name="session",
            factory="dynamo_sdk.routing.session:SessionRouter",
            config="dynamo_sdk.routing.config:SessionConfig",
            summary="a session stays with its worker; other requests as another router says",
        ),
        RouterDescriptor(
            name="shadow",
            factory="dynamo_sdk.routing.shadow:ConfiguredShadowRouter",
            config="dynamo_sdk.routing.config:ShadowConfig",
            summary="one router acts, others decide on the same traffic and are counted",
        ),
        RouterDescriptor(
            name="direct",
            factory="dynamo_sdk.routing.direct:DirectRouter",
            summary="the worker that the request names",
        ),
        RouterDescriptor(
            name="round-robin",
            factory="dynamo_sdk.routing.policies:RoundRobinRouter",
            summary="everybody in turn",
        ),
        RouterDescriptor(
            name="random", factory="dynamo_sdk.routing.policies:RandomRouter", summary="anybody, by chance"
        ),
        RouterDescriptor(
            name="power-of-two",
            factory="dynamo_sdk.routing.policies:PowerOfTwoRouter",
            config="dynamo_sdk.routing.config:LoadConfig",
            summary="the less busy of two drawn by chance",
        ),
        RouterDescriptor(
            name="least-loaded",
            factory="dynamo_sdk.routing.policies:LeastLoadedRouter",
            config="dynamo_sdk.routing.config:LoadConfig",
            summary="the least busy of all",
        ),
    ]


@hookimpl
def dynamo_sdk_kv_connectors() -> list[KVConnectorDescriptor]:
    return [
        KVConnectorDescriptor(
            name="direct",
            factory="dynamo_sdk.transfer.direct:DirectConnector",
            summary="shared memory on one host, NIXL or TCP across hosts",
            recuts_blocks=True,
        ),
        KVConnectorDescriptor(
            name="stateless",
            factory="dynamo_sdk.engines.stateless:StatelessConnector",
            summary="nothing to move: for engines that keep no KV between the legs",
        ),
    ]


@hookimpl
def dynamo_sdk_kv_stores() -> list[KVStoreDescriptor]:
    return [
        KVStoreDescriptor(
            name="ram",
            factory="dynamo_sdk.stores.ram:RamStore",
            config="dynamo_sdk.stores.config:RamStoreConfig",
            tier=KVTier.HOST,
            default_min_uses=0,
            summary="host memory of the worker, pinned where CUDA is",
        ),
        KVStoreDescriptor(
            name="disk",
            factory="dynamo_sdk.stores.disk:DiskStore",
            config="dynamo_sdk.stores.config:DiskStoreConfig",
            tier=KVTier.DISK,
            folder_arg="path",
            summary="a folder on a local disk; found again after a restart",
        ),
        KVStoreDescriptor(
            name="s3",
            factory="dynamo_sdk.stores.s3:S3Store",
            config="dynamo_sdk.stores.config:S3StoreConfig",
            requirement="dynamo-sdk[s3]",
            summary="a bucket of any S3 server, shared by all who are given it",
        ),
        KVStoreDescriptor(
            name="shared",
            factory="dynamo_sdk.stores.peer:PeerStore",
            config="dynamo_sdk.stores.config:PeerStoreConfig",
            default_min_uses=0,
            summary="host memory and disks of other workers, when the frontend says that they have more",
        ),
    ]


@hookimpl
def dynamo_sdk_launchers() -> list[LauncherDescriptor]:
    return [
        LauncherDescriptor(
            name="local",
            factory="dynamo_sdk.launch.local:LocalLauncher",
            summary="one supervised process per replica on this host",
        ),
        LauncherDescriptor(
            name="inprocess",
            factory="dynamo_sdk.launch.inprocess:InProcessLauncher",
            summary="all services in one process, for notebooks and tests",
        ),
    ]


@hookimpl
def dynamo_sdk_discoveries() -> list[DiscoveryDescriptor]:
    return [
        DiscoveryDescriptor(
            name="embedded",
            factory="dynamo_sdk.runtime.discovery:EmbeddedDiscovery",
            summary="a registry inside the launching process, with leases",
        ),
    ]
