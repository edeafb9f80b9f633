"""Engines on the stand-in, in both versions that the contract describes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from fake_tensorrt_llm import World, install, uninstall

from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.types import ModelSpec, Role
from dynamo_sdk_trtllm.config import TensorRTConfig
from dynamo_sdk_trtllm.engine import TensorRTEngine
from dynamo_sdk_trtllm.plugin import CONNECTOR

Started = Callable[..., AbstractAsyncContextManager[TensorRTEngine]]

BLOCK = 4
CONTEXT = 512


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["1.2", "1.3"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield install(request.param)
    uninstall()


def new_engine(role: Role = Role.AGGREGATED, *, path: str = "/models/m", **args: object) -> TensorRTEngine:
    """Ready to hand over, with blocks of four tokens."""
    written = {"context_length": CONTEXT, "kv_cache_config": {"tokens_per_block": BLOCK}, **args}
    setup = EngineSetup(model=ModelSpec(name="m", path=path), role=role, connector=CONNECTOR)
    return TensorRTEngine(setup, TensorRTConfig.model_validate(written))


@pytest.fixture
def started(world: World) -> Started:
    @asynccontextmanager
    async def start(role: Role = Role.AGGREGATED, **args: object) -> AsyncIterator[TensorRTEngine]:
        engine = new_engine(role, **args)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.close()

    return start
