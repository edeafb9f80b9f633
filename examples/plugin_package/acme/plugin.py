"""What this distribution offers. Import strings only, because every command loads this module."""

from dynamo_sdk import hookimpl
from dynamo_sdk.plugins import EngineDescriptor, KVStoreDescriptor, PlannerDescriptor, RouterDescriptor


@hookimpl
def dynamo_sdk_engines():
    return [
        EngineDescriptor(name="mirror", factory="acme.engine:MirrorEngine", config="acme.engine:MirrorConfig")
    ]


@hookimpl
def dynamo_sdk_routers():
    return [RouterDescriptor(name="roomiest", factory="acme.router:Roomiest")]


@hookimpl
def dynamo_sdk_planners():
    return [
        PlannerDescriptor(
            name="queue", factory="acme.planner:QueuePlanner", config="acme.planner:QueueConfig"
        )
    ]


@hookimpl
def dynamo_sdk_kv_stores():
    return [
        KVStoreDescriptor(name="folder", factory="acme.store:FolderStore", config="acme.store:FolderConfig")
    ]
