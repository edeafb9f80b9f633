"""What a worker opens of its tiers to others, and what its own store learns of them."""

import pytest

from dynamo_sdk.engines.echo import EchoEngine
from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import (
    EngineSetup,
    HasKVTiers,
    KVSharingStatistics,
    KVTiersStatistics,
    ReadableTiers,
    ServedTiers,
)
from dynamo_sdk.metrics import WorkerMetrics
from dynamo_sdk.services.kv_sharing import serve_tiers, trusting
from dynamo_sdk.stores import PeerStore, PeerStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.types import KVSource, ModelSpec, Role
from dynamo_sdk.types.plan import KVTierPlan

pytestmark = pytest.mark.anyio

SIZE = 4096
KEY, BLOCK = b"k" * 16, b"b" * SIZE


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Tiered(EchoEngine, HasKVTiers):
    readable: ReadableTiers | ServedTiers | None = None

    def kv_tier_statistics(self):
        return KVTiersStatistics(tiers=())

    def readable_tiers(self):
        return self.readable


def engine(cls=EchoEngine):
    return cls(EngineSetup(model=ModelSpec(name="m", path="/"), role=Role.AGGREGATED))


def ram(block_bytes):
    return RamStore(RamStoreConfig(block_bytes=block_bytes, capacity_bytes=4 * block_bytes))


@pytest.mark.parametrize("secret", [None, "s"])
async def test_one_worker_reads_what_another_one_opens(secret):
    owner = engine(Tiered)
    store = trusting(ram, secret)(SIZE)
    owner.readable = ReadableTiers(stores=(store,), block_bytes=SIZE)
    reader = trusting(lambda size: PeerStore(PeerStoreConfig(block_bytes=size)), secret)(SIZE)
    await store.start()
    await reader.start()
    await store.put(KEY, BLOCK)
    shared = await serve_tiers(owner, (), "tcp:127.0.0.1:0", secret)
    reader.expect([KEY, b"other" * 4], KVSource(worker_id="w", address=shared.address, num_blocks=1))
    assert await reader.get(KEY) == BLOCK
    assert await reader.get(b"other" * 4) is None
    metrics = WorkerMetrics(service="S", worker_id="w", role="aggregated")
    shared.observe(metrics.tiers)
    text = metrics.render().decode()
    for name, value in (("lookup_blocks", 2.0), ("blocks", 1.0), ("refused", 0.0)):
        assert any(
            line.startswith(f"kvbm_shared_{name}_total{{") and line.endswith(f" {value}")
            for line in text.splitlines()
        ), name
    await reader.close()
    await shared.close()
    await store.close()


async def test_an_engine_may_serve_its_tiers_itself():
    """Its stores are in another process; the worker tells others where, and what was read there."""
    said = KVSharingStatistics(num_lookups=3, num_blocks=2, num_refused=1)
    owner = engine(Tiered)
    owner.readable = ServedTiers(address="unix:/served", statistics=lambda: said)
    shared = await serve_tiers(owner, (), "tcp:127.0.0.1:0", None)
    assert (shared.address, shared.server) == ("unix:/served", None)
    metrics = WorkerMetrics(service="S", worker_id="w", role="aggregated")
    shared.observe(metrics.tiers)
    lines = metrics.render().decode().splitlines()
    values = {
        line.partition("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("kvbm_shared_")
    }
    assert values["kvbm_shared_lookup_blocks_total"] == 3
    assert values["kvbm_shared_blocks_total"] == 2
    assert values["kvbm_shared_refused_total"] == 1
    await shared.close()


async def test_nothing_is_opened_where_there_is_nothing_to_read():
    assert await serve_tiers(engine(), (), "tcp:127.0.0.1:0", None) is None
    tiered = engine(Tiered)
    assert await serve_tiers(tiered, (), "tcp:127.0.0.1:0", None) is None
    tiered.readable = ReadableTiers(stores=(), block_bytes=SIZE)
    with pytest.raises(ConfigError, match="put a tier such as ram before shared"):
        await serve_tiers(tiered, (), "tcp:127.0.0.1:0", None)


async def test_a_tier_without_effect_is_said(caplog):
    plans = [KVTierPlan(name="ram", kind="ram"), KVTierPlan(name="shared", kind="shared")]
    assert await serve_tiers(engine(), plans[:1], "tcp:127.0.0.1:0", None) is None
    assert not caplog.messages
    assert await serve_tiers(engine(), plans, "tcp:127.0.0.1:0", None) is None
    assert "its tier 'shared' has no effect" in caplog.text
