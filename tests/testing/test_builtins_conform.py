"""Everything that we ship, and every fake, passes its own kit."""

from __future__ import annotations

import msgspec
import pytest

from dynamo_sdk.engines.echo import EchoConfig, EchoEngine
from dynamo_sdk.engines.stateless import TICKET
from dynamo_sdk.errors import EngineStartError
from dynamo_sdk.interfaces import Engine, EngineSetup, Handover
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import (
    ENGINE_CHECKS,
    EngineFactory,
    FakeEngine,
    FakeKVConnector,
    FakePlanner,
    FakeRouter,
    MemoryKVStore,
    check_engine,
    check_kv_connector,
    check_kv_store,
    check_planner,
    check_router,
)
from dynamo_sdk.testing.engine_bench import EngineBench
from dynamo_sdk.testing.engine_loras import LORA_CHECKS
from dynamo_sdk.types import KVEvent, KVEventBatch, KVTier, KVTransferParams, ModelSpec, Role

from .folder_store import FolderKVStore
from .paged_engine import ADAPTERS, PagedEngine


def echo(role: Role, *, delay_ms: float = 0.0) -> Engine:
    setup = EngineSetup(model=ModelSpec(name="model", path="."), role=role)
    return EchoEngine(setup, EchoConfig(delay_ms=delay_ms))


ENGINES: dict[str, EngineFactory] = {
    "echo": echo,
    "echo with a delay": lambda role: echo(role, delay_ms=0.05),
    "fake": lambda role: FakeEngine(range(30, 50), ticket=TICKET),
    "paged": lambda role: PagedEngine(),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ENGINES)
async def test_engines(name: str) -> None:
    report = await check_engine(ENGINES[name], loras=ADAPTERS)
    report.raise_if_failed()
    assert len(report.results) == len(ENGINE_CHECKS)
    assert not {result.name for result in report.skipped} & {check.__name__ for check in LORA_CHECKS}


@pytest.mark.anyio
@pytest.mark.parametrize("handover", Handover)
@pytest.mark.parametrize("first_token", [Role.PREFILL, Role.DECODE])
async def test_tickets_of_a_connector(handover: Handover, first_token: Role) -> None:
    connector = FakeKVConnector(handover=handover, first_token=first_token)
    ticket = KVTransferParams(connector="fake", payload=b"")
    report = await check_engine(lambda role: FakeEngine(range(30, 50), ticket=ticket), connector=connector)
    report.raise_if_failed()
    assert connector.tickets
    outcomes = {result.name: result.outcome for result in report.results}
    assert outcomes["both_legs_give_the_whole_output"] == "passed"


class TwoTiers(PagedEngine):
    """Copies each block to host memory as it is stored."""

    def publish(self, event: KVEvent) -> None:
        super().publish(event)
        super().publish(msgspec.structs.replace(event, tier=KVTier.HOST))

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        (batch,) = super().kv_snapshot()
        copies = (msgspec.structs.replace(event, tier=KVTier.HOST) for event in batch.events)
        return (msgspec.structs.replace(batch, events=(*batch.events, *copies)),)


class TwoRanks(PagedEngine):
    dp_size = 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("engine", "check"),
    [(TwoTiers, "kv_events_follow_moves"), (TwoRanks, "ranks_are_those_declared")],
    ids=["two tiers", "two ranks"],
)
async def test_engines_that_have_more(engine: type[PagedEngine], check: str) -> None:
    report = await check_engine(lambda role: engine(), loras=ADAPTERS)
    report.raise_if_failed()
    skipped = {result.name for result in report.skipped}
    assert check not in skipped


@pytest.mark.anyio
async def test_an_engine_with_one_role_skips_the_others() -> None:
    report = await check_engine(echo, roles=[Role.DECODE])
    report.raise_if_failed()
    skipped = {result.name for result in report.results if result.outcome == "skipped"}
    assert "prefill_hands_over" in skipped
    assert "max_tokens_is_exact" not in skipped


@pytest.mark.parametrize("name", Registry.of().routers)
def test_routers(name: str) -> None:
    registry = Registry.of()
    check_router(lambda: registry.build_router(name)).raise_if_failed()


def test_fake_router() -> None:
    """It remembers all that it saw: that is what it is for."""
    report = check_router(lambda: FakeRouter(["a", "b"]))
    assert [result.name for result in report.failed] == ["forgets_what_has_ended"]


def test_fake_planner() -> None:
    check_planner(lambda: FakePlanner([{"Prefill": 2}, {}, {"Prefill": 1}])).raise_if_failed()


@pytest.mark.parametrize("handover", Handover)
@pytest.mark.parametrize("first_token", [Role.PREFILL, Role.DECODE])
def test_fake_kv_connector(handover: Handover, first_token: Role) -> None:
    report = check_kv_connector(
        lambda: FakeKVConnector(handover=handover, first_token=first_token), name="fake"
    )
    report.raise_if_failed()


def test_stateless_kv_connector() -> None:
    registry = Registry.of()
    report = check_kv_connector(
        lambda: registry.build_kv_connector("stateless"), name="stateless", answer=lambda request: TICKET
    )
    report.raise_if_failed()


def test_direct_kv_connector() -> None:
    registry = Registry.of()
    report = check_kv_connector(
        lambda: registry.build_kv_connector("direct"),
        name="direct",
        answer=lambda request: KVTransferParams(
            connector="direct", payload=request.request_id.encode(), ttl_s=5.0
        ),
    )
    report.raise_if_failed()
    assert {result.name for result in report.skipped} == {"rendezvous_pairs_the_legs"}


@pytest.mark.anyio
@pytest.mark.parametrize("capacity_bytes", [None, 3 * 4096, 5 * 4096 + 1])
async def test_memory_kv_store(capacity_bytes: int | None) -> None:
    (await check_kv_store(lambda: MemoryKVStore(capacity_bytes))).raise_if_failed()


@pytest.mark.anyio
async def test_a_store_on_disk() -> None:
    report = await check_kv_store(on_disk=FolderKVStore)
    report.raise_if_failed()
    assert not report.skipped


def test_prompts_stay_in_the_vocabulary() -> None:
    bench = EngineBench(factory=echo, roles=tuple(Role), vocab_size=12, is_exact=True)
    for seed in range(20):
        assert set(bench.prompt(seed, 50)) <= {10, 11}


@pytest.mark.anyio
async def test_an_engine_that_cannot_start_says_so_once_per_role() -> None:
    error = EngineStartError("no weights for lm_head")
    report = await check_engine(lambda role: FakeEngine(start_error=error))
    assert not report.is_ok
    failed = {result.name: result.detail for result in report.failed}
    assert failed["facts_make_sense"] == "EngineStartError: no weights for lm_head"
    assert "max_tokens_is_exact" not in failed
    skipped = {result.name for result in report.results if result.outcome == "skipped"}
    assert "max_tokens_is_exact" in skipped
    with pytest.raises(AssertionError, match="an engine in the role aggregated does not start"):
        report.raise_if_failed()
