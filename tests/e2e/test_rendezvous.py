"""A hand-over by rendezvous: both legs start at once, each with a ticket that was made beforehand.

The graph's own module brings the connector and an engine that speaks it, as a project would.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

import anyio
import httpx
import pytest
from msgspec.structs import replace

from dynamo_sdk import Graph, depends, hookimpl, service
from dynamo_sdk.interfaces import Engine, EngineFacts, EngineSetup, Handover
from dynamo_sdk.plugins import EngineDescriptor, KVConnectorDescriptor
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker
from dynamo_sdk.testing import FakeEngine, FakeKVConnector
from dynamo_sdk.types import GenerateChunk, GenerateRequest, KVTransferParams, Role, WorkerRecord

from .asking import Body, client_of
from .serving import scrape, wait_at_rest

pytestmark = pytest.mark.anyio

ANSWER = (300, 301, 302, 303)


class MeetingConnector(FakeKVConnector):
    def __init__(self) -> None:
        super().__init__(handover=Handover.RENDEZVOUS, first_token=Role.DECODE, name="meeting")

    def prefill_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, decode: WorkerRecord | None
    ) -> KVTransferParams:
        return self._ticket(f"{request.request_id} at {prefill.handover_address}")

    def decode_ticket(
        self, request: GenerateRequest, prefill: WorkerRecord, answer: KVTransferParams | None
    ) -> KVTransferParams:
        assert answer is not None
        return answer


class Meetings:
    """Where the legs of this process find each other. ``arrived``: tickets by request and role."""

    arrived: ClassVar[dict[str, dict[Role, str]]] = {}
    both: ClassVar[dict[str, anyio.Event]] = {}

    @classmethod
    async def meet(cls, request: GenerateRequest) -> None:
        assert request.kv_transfer is not None
        legs = cls.arrived.setdefault(request.request_id, {})
        both = cls.both.setdefault(request.request_id, anyio.Event())
        legs[request.role] = request.kv_transfer.payload.decode()
        if len(legs) == 2:
            both.set()
        await both.wait()


class MeetingEngine(Engine):
    """Says nothing before its other leg is there. A sequential hand-over would never end."""

    def __init__(self, setup: EngineSetup, config: None) -> None:
        self._engine = FakeEngine(ANSWER)

    async def start(self) -> EngineFacts:
        return replace(await self._engine.start(), handover_address="the square")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        if request.kv_transfer is not None:
            await Meetings.meet(request)
        async for chunk in self._engine.generate(request):
            yield chunk

    async def close(self) -> None:
        await self._engine.close()


@hookimpl
def dynamo_sdk_engines() -> list[EngineDescriptor]:
    factory = f"{__name__}:MeetingEngine"
    return [EngineDescriptor(name="meeting", factory=factory, roles=tuple(Role), connectors=("meeting",))]


@hookimpl
def dynamo_sdk_kv_connectors() -> list[KVConnectorDescriptor]:
    return [KVConnectorDescriptor(name="meeting", factory=f"{__name__}:MeetingConnector")]


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


graph = Graph(Api, connector="meeting")
DEPLOY = {"services": {"Prefill": {"engine": "meeting"}, "Decode": {"engine": "meeting"}}}


@pytest.fixture(autouse=True)
def _nobody_is_there() -> None:
    Meetings.arrived.clear()
    Meetings.both.clear()


async def test_both_legs_meet_and_the_answer_comes_once() -> None:
    async with graph.local(DEPLOY) as app, client_of(str(app.url)) as client:
        Meetings.arrived.clear()
        body = {"model": "demo", "prompt": [20, 21, 22], "max_tokens": 4, "logprobs": 1}
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["completion_tokens"] == 4
        assert len(response.json()["choices"][0]["logprobs"]["tokens"]) == 4
        ((request_id, tickets),) = Meetings.arrived.items()
        assert tickets[Role.PREFILL] == tickets[Role.DECODE] == f"{request_id} at the square"
        metrics = await wait_at_rest(client)
        tokens = metrics.by("role", "dynamo_component_decode_tokens_total")
        assert tokens["prefill"] == 0
        assert tokens["decode"] >= 4


async def test_several_requests_meet_at_once() -> None:
    async with graph.local(DEPLOY, set=["services.Decode.replicas=2"]) as app:
        async with client_of(str(app.url)) as client, anyio.create_task_group() as tasks:
            for number in range(20):
                body = {"model": "demo", "prompt": [20 + number], "max_tokens": 3}
                tasks.start_soon(_expect_three_tokens, client, body)
        async with client_of(str(app.url)) as client:
            shares = (await scrape(client)).by("worker_id", "dynamo_component_requests_total", role="decode")
            assert len(shares) == 2
            assert min(shares.values()) > 0


async def _expect_three_tokens(client: httpx.AsyncClient, body: Body) -> None:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 3
