from __future__ import annotations

import pytest

from dynamo_sdk.runtime.announcement import Announcement
from dynamo_sdk.runtime.discovery import MemoryDiscovery
from dynamo_sdk.types import ModelRecord, WorkerId, WorkerRecord

pytestmark = pytest.mark.anyio

RECORD = WorkerRecord(worker_id=WorkerId("w-1"), service="Worker", replica=0, address="memory:1")
MODELS = (ModelRecord(name="m", path="/m", context_length=8),)


async def test_changes_add_up_while_it_is_announced():
    discovery, announcement = MemoryDiscovery(), Announcement()
    await announcement.change(is_ready=True)
    assert discovery.registry.fleet() == {}, "there is nothing to change yet"
    await announcement.begin(RECORD, discovery)
    assert discovery.registry.fleet() == {"w-1": RECORD}
    await announcement.change(is_ready=True)
    await announcement.change(models=MODELS)
    (seen,) = discovery.registry.fleet().values()
    assert (seen.is_ready, seen.models) == (True, MODELS)
    await announcement.end()
    await announcement.change(is_ready=False)
    await announcement.end()
    assert discovery.registry.fleet() == {}
