"""The adapter on a stand-in for SGLang, in a real process of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

import dynamo_sdk
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.types import ModelSpec, Role
from dynamo_sdk_sglang.config import SglangConfig
from dynamo_sdk_sglang.engine import SglangEngine
from dynamo_sdk_sglang.handover import SglangConnector
from dynamo_sdk_sglang.plugin import CONNECTOR

HERE = Path(__file__).parent
PATHS = (HERE / "fake_sglang", HERE.parents[1], Path(dynamo_sdk.__file__).parents[1])

Started = Callable[..., AbstractAsyncContextManager[SglangEngine]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def fake_engine(role: Role = Role.AGGREGATED, *, path: str = "/models/m", **args: object) -> SglangEngine:
    """Not yet started."""
    setup = EngineSetup(model=ModelSpec(name="m", path=path), role=role)
    if role is not Role.AGGREGATED:
        setup = EngineSetup(
            model=setup.model,
            role=role,
            connector=CONNECTOR,
            connector_args=SglangConnector().engine_args(role),
        )
    environment = {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    return SglangEngine(setup, SglangConfig.model_validate({"environment": environment, **args}))


@pytest.fixture
def started() -> Started:
    @asynccontextmanager
    async def make(role: Role = Role.AGGREGATED, **args: object) -> AsyncIterator[SglangEngine]:
        engine = fake_engine(role, **args)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.close()

    return make
