"""The adapter on vLLMs of two ages, neither of which is real."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from fake_vllm import NewAsyncLLM, OldSamplingParams, install
from msgspec.structs import replace

from dynamo_sdk.errors import EngineStartError, InvalidRequest, ModelNotFound
from dynamo_sdk.interfaces import EngineSetup, KVSharing, KVSharingStatistics, KVTierSetup
from dynamo_sdk.plugins import Registry
from dynamo_sdk.testing import check_engine, generate_request, read_all
from dynamo_sdk.types import BlocksStored, FinishReason, KVEventBatch, KVSource, LoraSpec, ModelSpec, Role
from dynamo_sdk.types.plan import KVTierPlan
from dynamo_sdk_vllm.config import VllmConfig
from dynamo_sdk_vllm.engine import VllmEngine
from dynamo_sdk_vllm.handover import CONNECTOR, VllmNixlConnector
from dynamo_sdk_vllm.tiers.config import Shard, setups_of
from dynamo_sdk_vllm.tiers.sharing import answer, asked, source_of
from dynamo_sdk_vllm.tiers.statistics import of_worker

pytestmark = pytest.mark.anyio

NOT_IN_THE_FAKES = {
    "kv_events_name_parents_first",
    "kv_events_speak_of_real_blocks",
    "logit_bias_is_honoured",
    "narrow_sampling_is_greedy",
    "strange_sampling_is_refused",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[False, True], ids=["old", "new"])
def is_new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    logging.getLogger("dynamo_sdk.engines.zmq_events").setLevel(logging.ERROR)
    install(monkeypatch, is_new=request.param)
    return bool(request.param)


def engine_of(
    role: Role,
    loras: Sequence[LoraSpec] = (),
    kv_tiers: Sequence[KVTierSetup] = (),
    kv_sharing: KVSharing | None = None,
    **args: object,
) -> VllmEngine:
    connector = None if role is Role.AGGREGATED else CONNECTOR
    setup = EngineSetup(
        model=ModelSpec(name="m", path="/models/m"),
        role=role,
        connector=connector,
        connector_args={} if connector is None else VllmNixlConnector().engine_args(role),
        loras=tuple(loras),
        kv_tiers=tuple(kv_tiers),
        kv_sharing=kv_sharing,
    )
    return VllmEngine(setup, VllmConfig.model_validate(args))


async def test_it_keeps_the_contract(*, is_new: bool, tmp_path: Path):
    report = await check_engine(
        lambda role: engine_of(role, enable_lora=True) if is_new else engine_of(role),
        roles=[Role.AGGREGATED],
        vocab_size=50,
        loras=[str(tmp_path), str(tmp_path.parent)] if is_new else [],
    )
    failed = {result.name for result in report.results if result.outcome == "failed"}
    assert failed <= NOT_IN_THE_FAKES, str(report)


async def test_leaving_counts_also_when_all_has_come(*, is_new: bool):
    """vLLM gives what has come already without a turn of the event loop."""
    engine = engine_of(Role.AGGREGATED)
    await engine.start()
    llm = engine._llm

    async def all_at_once(*_: object, **__: object) -> AsyncIterator[object]:
        for number in range(30):
            yield llm._output([number], "length" if number == 29 else None, OldSamplingParams())

    llm._run = all_at_once
    stream = engine.generate(generate_request([7]))
    await anext(stream)
    num_chunks = 0
    with anyio.CancelScope() as scope:
        scope.cancel()
        async for _ in stream:
            num_chunks += 1
    assert scope.cancelled_caught
    assert num_chunks == 0
    await stream.aclose()
    load = engine.load()
    assert load is not None
    assert load.num_running + load.num_waiting == 0
    await engine.close()


async def test_prefill_asks_for_a_ticket_and_hands_it_over(*, is_new: bool):
    engine = engine_of(Role.PREFILL)
    await engine.start()
    answer = await read_all(engine, generate_request([1, 2, 3], role=Role.PREFILL))
    assert answer.finish_reason is FinishReason.HANDOVER
    assert answer.kv_transfer is not None
    assert engine._llm.args.kv_transfer_config.kv_role == "kv_producer"
    assert engine._llm.args.kv_transfer_config.kv_connector_extra_config == {"kv_lease_duration": 30.0}
    load = engine.load()
    assert load is not None
    assert load.num_free_blocks == 90, "what was handed over is held, as far as vLLM has said"
    await engine.close()


async def test_it_says_where_its_tiers_are_read_once_vllm_has_said_so(*, is_new: bool):
    plans = [KVTierPlan(name="ram", kind="ram", capacity_bytes=1 << 20)]
    sharing = KVSharing(address="tcp:127.0.0.1:0", secret="known to both")
    setups = setups_of(plans, Registry.of(), Shard())
    engine = engine_of(Role.AGGREGATED, kv_tiers=setups, kv_sharing=sharing)
    assert engine.readable_tiers() is None
    await engine.start()
    written = engine._llm.args.kv_transfer_config
    assert "known to both" not in repr(written), "vLLM logs it"
    folder = Path(written.kv_connector_extra_config["sharing"])
    assert asked(folder) == sharing
    assert engine.readable_tiers() is None
    answer(folder, 0, "tcp:127.0.0.1:5")
    served = engine.readable_tiers()
    assert served is not None
    assert (served.address, served.statistics().num_blocks) == ("tcp:127.0.0.1:5", 0)
    said = of_worker("0", None, KVSharingStatistics(num_blocks=3))
    engine._on_statistics(0, SimpleNamespace(kv_connector_stats=said, kv_cache_usage=0.0), None)
    assert served.statistics().num_blocks == 3

    source = KVSource(worker_id="w", address="unix:/w", num_blocks=2)
    await read_all(engine, replace(generate_request([1, 2, 3]), kv_source=source))
    assert source_of(engine._llm.asked[-1]["params"]) == source
    await read_all(engine, generate_request([1, 2, 3]))
    assert engine._llm.asked[-1]["params"].extra_args is None
    await engine.close()
    assert not await anyio.Path(folder).exists()


async def test_adapters_of_a_version_that_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    install(monkeypatch, is_new=True)
    adapter = LoraSpec(name="a", path=str(tmp_path))
    engine = engine_of(Role.AGGREGATED, loras=[adapter])
    await engine.start()
    await engine.load_lora(adapter)
    request = replace(generate_request([1, 2, 3]), lora="a")
    await read_all(engine, request)
    llm = engine._llm
    assert isinstance(llm, NewAsyncLLM)
    assert llm.asked[-1]["lora"].lora_path == str(tmp_path)
    assert isinstance(llm.asked[-1]["params"], OldSamplingParams)
    with pytest.raises(InvalidRequest, match="vLLM cannot load adapter 'b' from '/nowhere'"):
        await engine.load_lora(LoraSpec(name="b", path="/nowhere"))
    await engine.unload_lora("a")
    with pytest.raises(ModelNotFound, match="loaded: none"):
        await read_all(engine, request)
    await engine.close()
    assert llm.is_shut_down


async def test_without_adapters_at_the_start_vllm_takes_none(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, is_new=True)
    engine = engine_of(Role.AGGREGATED)
    await engine.start()
    with pytest.raises(InvalidRequest, match=r"args: \{enable_lora: true\}"):
        await engine.load_lora(LoraSpec(name="a", path="/"))
    await engine.close()


async def test_on_the_cpu_the_last_slot_stays_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """vLLM would apply what is in it to requests without an adapter."""
    install(monkeypatch, is_new=True, is_cpu=True)
    engine = engine_of(Role.AGGREGATED, loras=[LoraSpec(name="a", path=str(tmp_path))])
    await engine.start()
    assert engine._llm.args.max_loras == 2
    await engine.load_lora(LoraSpec(name="a", path=str(tmp_path)))
    with pytest.raises(InvalidRequest, match="on the CPU 1 of them stays empty"):
        await engine.load_lora(LoraSpec(name="b", path=str(tmp_path)))
    await engine.unload_lora("a")
    await engine.load_lora(LoraSpec(name="b", path=str(tmp_path)))
    await engine.close()


def stored(lora: str | None) -> BlocksStored:
    return BlocksStored(block_hashes=(1,), parent_hash=None, token_ids=(1, 2), block_size=2, lora=lora)


async def test_events_have_our_names_while_an_adapter_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """vLLM finds KV by name: each load has one of its own there."""
    install(monkeypatch, is_new=True)
    engine = engine_of(Role.AGGREGATED, enable_lora=True)
    await engine.start()
    heard: list[str | None] = []
    engine.subscribe_kv_events(lambda batch: heard.extend(event.lora for event in batch.events))  # type: ignore[union-attr]
    names = []
    for folder in (tmp_path, tmp_path.parent):
        await engine.load_lora(LoraSpec(name="a", path=str(folder)))
        await read_all(engine, replace(generate_request([1, 2, 3]), lora="a"))
        names.append(engine._llm.asked[-1]["lora"].lora_name)
        events = (stored(None), *(stored(name) for name in names))
        engine._on_kv_events(KVEventBatch(sequence=0, dp_rank=0, events=events))
        await engine.unload_lora("a")
    assert names[0] != names[1]
    assert heard == [None, "a", None, names[0], "a"]
    await engine.close()


async def test_without_vllm_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm.config", None)
    engine = engine_of(Role.AGGREGATED)
    with pytest.raises(EngineStartError, match=r"dynamo-sdk-vllm\[engine\].*services\.X\.python"):
        await engine.start()
    await engine.close()
