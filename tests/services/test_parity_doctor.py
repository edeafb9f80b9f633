"""Workers of a running graph are checked once each; faults that are planted in their events are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.engines.mocker.engine import MockerEngine
from dynamo_sdk.interfaces import ItemSource, PublishesKVEvents
from dynamo_sdk.launch.inprocess import InProcessLauncher
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker, Worker
from dynamo_sdk.services import parity_doctor as doctor
from dynamo_sdk.types import BlocksStored, GenerateChunk, GenerateRequest, KVEvent, KVEventBatch

pytestmark = pytest.mark.anyio

MOCKER = ["engine=mocker", "args.speedup_ratio=1000.0", "args.block_size=16"]
Fault = Callable[[BlocksStored], KVEvent | None]


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


@service
class Whole(Worker): ...


@service
class WholeApi(Frontend):
    whole = depends(Whole)


class Shown:
    """What a running graph tells about its workers' block keys."""

    def __init__(self, app: InProcessLauncher, client: httpx.AsyncClient) -> None:
        self.app = app
        self._client = client

    async def health(self, model: str = "demo") -> str:
        answer: str = (await self._client.get("/health")).json()["details"][model]
        return answer

    async def checked(self) -> str:
        """``/health``, once every worker has been checked."""
        with anyio.fail_after(30):
            while "not checked yet" in (text := await self.health()):
                await checkpoint()
        return text

    async def checks(self) -> dict[str, float]:
        """Counted so far, by verdict."""
        lines = (await self._client.get("/metrics")).text.splitlines()
        found = [line for line in lines if line.startswith("dynamo_router_parity_checks_total{")]
        return {line.split('verdict="')[1].split('"')[0]: float(line.rpartition(" ")[2]) for line in found}


@asynccontextmanager
async def running(
    graph: Graph, services: list[str], *overrides: str, engine: Sequence[str] = MOCKER, router: str = "kv"
) -> AsyncIterator[Shown]:
    settings = ["models.demo.path=demo", f"models.demo.router={router}", *overrides]
    settings += [f"services.{name}.{setting}" for name in services for setting in engine]
    async with InProcessLauncher.app(graph, overrides=settings) as app:
        assert app.url is not None
        async with httpx.AsyncClient(base_url=app.url) as client:
            yield Shown(app, client)


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Let the mocker's events go through ``fault``."""
    subscribe = MockerEngine.subscribe_kv_events

    def faulty(self: MockerEngine, listener: Callable[[KVEventBatch], None]) -> None:
        def tell(batch: KVEventBatch) -> None:
            events = [fault(event) if isinstance(event, BlocksStored) else event for event in batch.events]
            told = tuple(event for event in events if event is not None)
            listener(msgspec.structs.replace(batch, events=told))

        subscribe(self, tell)

    monkeypatch.setattr(MockerEngine, "subscribe_kv_events", faulty)


async def test_both_kinds_of_workers_are_checked_with_every_rank() -> None:
    ranks = [f"services.{name}.args.dp_size=2" for name in ("Prefill", "Decode")]
    async with running(Graph(Api), ["Prefill", "Decode"], *ranks) as shown:
        assert "block keys as predicted on 2 of 2 workers" in await shown.checked()
        assert await shown.checks() == {"ok": 2.0}


async def test_a_worker_is_checked_once_and_so_is_one_that_comes_later() -> None:
    async with running(Graph(WholeApi), ["Whole"]) as shown:
        await shown.checked()
        await shown.app.scale_to("Whole", 2)
        await shown.app.wait_ready()
        assert "block keys as predicted on 2 of 2 workers" in await shown.checked()
        assert await shown.checks() == {"ok": 2.0}


def ignores_salt(event: BlocksStored) -> KVEvent:
    return msgspec.structs.replace(event, cache_salt=None)


def doubles_blocks(event: BlocksStored) -> KVEvent | None:
    names = event.block_hashes[1::2]
    return msgspec.structs.replace(
        event, block_hashes=names, token_ids=event.token_ids[: 32 * len(names)], block_size=32
    )


def says_nothing(_event: BlocksStored) -> None:
    return None


def forgets_last(event: BlocksStored) -> KVEvent:
    return msgspec.structs.replace(
        event, block_hashes=event.block_hashes[:-1], token_ids=event.token_ids[:-16]
    )


def loses_parent(event: BlocksStored) -> KVEvent:
    return msgspec.structs.replace(event, parent_hash=b"somebody else")


def adds_a_token(event: BlocksStored) -> KVEvent:
    return msgspec.structs.replace(event, token_ids=(7, *event.token_ids[:-1]))


@pytest.mark.parametrize(
    ("fault", "verdict", "says"),
    [
        (ignores_salt, "different_keys", "probe 'chat', block 0 of"),
        (ignores_salt, "different_keys", "leave the cache salt out (1 of 2 probes)"),
        (doubles_blocks, "different_keys", "blocks have 32 tokens and not 16"),
        (says_nothing, "no_events", "reported no stored block"),
        (forgets_last, "different_keys", "probe 'text', block 3 of 4: the engine does not report the last"),
        (loses_parent, "different_keys", "the child of another block"),
        (adds_a_token, "different_keys", "begins with 1 more or 15 fewer tokens"),
    ],
)
async def test_a_planted_fault_is_told(
    fault: Fault,
    verdict: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plant(monkeypatch, fault)
    monkeypatch.setattr(doctor, "EVENT_TIMEOUT_S", 0.05)  # what is wrong stays wrong
    async with running(Graph(WholeApi), ["Whole"]) as shown:
        text = await shown.checked()
        assert f": {verdict}, " in text
        assert says in text
        assert await shown.checks() == {verdict: 1.0}
        said = [record for record in caplog.records if record.message.startswith("parity of Whole.0")]
        assert [record.levelname for record in said] == ["WARNING"]
        assert says in said[0].message


async def test_a_worker_without_events_is_not_sent_anything_and_is_one_quiet_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    seen = requests_of(monkeypatch)
    async with running(Graph(WholeApi), ["Whole"], engine=["engine=echo"]) as shown:
        assert ": no_events, " in await shown.checked()
        assert not seen
    said = [record for record in caplog.records if "Whole.0" in record.message and "event" in record.message]
    assert [(record.levelname, record.message.partition(" from ")[0]) for record in said] == [
        ("INFO", "no KV events")
    ]


async def test_probes_are_short_salted_and_wait_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = requests_of(monkeypatch)
    async with running(Graph(WholeApi), ["Whole"]) as shown:
        await shown.checked()
    assert [request.cache_salt is not None for request in seen] == [False, True]
    assert all(request.priority > 1000 and request.sampling.max_tokens == 1 for request in seen)
    assert max(request.num_prompt_tokens for request in seen) <= 128


async def test_an_engine_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.05)
    opened = MockerEngine.open

    def hang(self: MockerEngine, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        return Silent() if request.request_id.startswith("parity-") else opened(self, request)

    monkeypatch.setattr(MockerEngine, "open", hang)
    async with running(Graph(WholeApi), ["Whole"]) as shown:
        text = await shown.checked()
        assert "unknown, probe 'text': the engine did not answer" in text
        assert await shown.checks() == {"unknown": 1.0}


async def test_a_worker_that_was_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(doctor, "RETRY_S", 0.05)
    opened, is_busy = MockerEngine.open, True

    def hang(self: MockerEngine, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        is_probe = request.request_id.startswith("parity-")
        return Silent() if is_busy and is_probe else opened(self, request)

    monkeypatch.setattr(MockerEngine, "open", hang)
    async with running(Graph(WholeApi), ["Whole"]) as shown:
        assert "unknown, probe 'text': the engine did not answer" in await shown.checked()
        is_busy = False
        with anyio.fail_after(30):
            while "block keys as predicted on 1 of 1 workers" not in await shown.health():
                await checkpoint()
        assert await shown.checks() == {"unknown": 1.0, "ok": 1.0}


class Silent(ItemSource[GenerateChunk]):
    """Nothing ever comes."""

    is_over = False

    def listen(self, on_ready: Callable[[], None]) -> None: ...

    def take(self) -> None:
        return None

    def close(self) -> None: ...


async def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = requests_of(monkeypatch)
    async with running(Graph(WholeApi), ["Whole"], "services.WholeApi.args.parity_probes=false") as shown:
        assert "block keys" not in await shown.health()
        assert "KV events from" in await shown.health()
    assert not seen


@service
class Other(Worker): ...


@service
class TwoApi(Frontend):
    whole = depends(Whole)
    other = depends(Other)


async def test_only_models_whose_router_looks_at_overlaps_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = requests_of(monkeypatch)
    models = ["models.other.path=demo", "models.other.router=round-robin"]
    models += ["services.Whole.model=demo", "services.Other.model=other"]
    async with running(Graph(TwoApi), ["Whole", "Other"], *models) as shown:
        assert "block keys as predicted on 1 of 1 workers" in await shown.checked()
        assert "block keys" not in await shown.health("other")
    assert {request.model for request in seen} == {"demo"}


async def test_routers_without_overlaps_need_no_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = requests_of(monkeypatch)
    async with running(Graph(WholeApi), ["Whole"], router="round-robin") as shown:
        assert "block keys" not in await shown.health()
    assert not seen


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[GenerateRequest]:
    """Probes that have arrived anywhere."""
    seen: list[GenerateRequest] = []
    start = doctor.Dispatcher.start

    def spied(self: doctor.Dispatcher, request: GenerateRequest, *args: object, **named: object) -> object:
        if request.request_id.startswith("parity-"):
            seen.append(request)
        return start(self, request, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor.Dispatcher, "start", spied)
    return seen


def test_the_mocker_is_an_engine_that_publishes() -> None:
    assert issubclass(MockerEngine, PublishesKVEvents), "or the planted faults are planted nowhere"
