"""What a worker does with an engine that is tried in a way of its own, and that can break for good."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

import anyio
import pytest

from dynamo_sdk import Graph, depends, hookimpl, service
from dynamo_sdk.errors import EngineFailed
from dynamo_sdk.interfaces import Engine, EngineFacts, EngineSetup, NoticesItsEnd, ProbesItself
from dynamo_sdk.launch.inprocess import InProcessLauncher
from dynamo_sdk.plugins import EngineDescriptor
from dynamo_sdk.services import Frontend, Worker
from dynamo_sdk.testing import FakeEngine
from dynamo_sdk.types import GenerateChunk, GenerateRequest

pytestmark = pytest.mark.anyio


class Brittle(Engine, NoticesItsEnd, ProbesItself):
    """Would rather not be tried by a request."""

    broken: ClassVar[anyio.Event]
    num_probes: ClassVar[int]

    def __init__(self, setup: EngineSetup, config: None) -> None:
        self._engine = FakeEngine()

    async def start(self) -> EngineFacts:
        return await self._engine.start()

    async def probe(self) -> None:
        type(self).num_probes += 1

    async def wait_failed(self) -> None:
        await self.broken.wait()
        raise EngineFailed("the scheduler is gone")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        assert self.num_probes
        async for chunk in self._engine.generate(request):
            yield chunk

    async def close(self) -> None:
        await self._engine.close()


@hookimpl
def dynamo_sdk_engines() -> list[EngineDescriptor]:
    return [EngineDescriptor(name="brittle", factory=f"{__name__}:Brittle")]


@service
class Whole(Worker): ...


@service
class Api(Frontend):
    whole = depends(Whole)


graph = Graph(Api)
DEPLOY = {"services": {"Whole": {"engine": "brittle"}}}


@pytest.fixture(autouse=True)
def _as_new() -> None:
    Brittle.broken, Brittle.num_probes = anyio.Event(), 0


async def test_it_is_tried_by_its_own_probe() -> None:
    async with graph.local(DEPLOY):
        assert Brittle.num_probes == 1


async def test_its_end_is_the_end_of_its_worker() -> None:
    async with graph.local(DEPLOY) as app:
        assert isinstance(app, InProcessLauncher)
        Brittle.broken.set()
        with pytest.raises(EngineFailed, match=r"Whole\.0: the scheduler is gone"):
            await app.wait_failed()
