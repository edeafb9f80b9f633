"""The conformance kit, in all roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.interfaces import EngineFacts
from dynamo_sdk.testing import check_engine
from dynamo_sdk.types import LoraSpec, Role
from dynamo_sdk_sglang.engine import SglangEngine
from dynamo_sdk_sglang.handover import SglangConnector

from .conftest import has_gpu, make_adapter, sglang_engine

pytestmark = pytest.mark.anyio


class WithAdapter(SglangEngine):
    """Has its adapter from the start, as a worker's engine."""

    async def start(self) -> EngineFacts:
        facts = await super().start()
        for lora in self.setup.loras:
            await self.load_lora(lora)
        return facts


async def test_it_keeps_the_contract(tmp_path: Path):
    adapter = make_adapter(tmp_path / "adapter")
    backend = {} if has_gpu() else {"lora_backend": "torch_native"}

    def make(role: Role, loras: tuple[LoraSpec, ...] = (), **args: object) -> SglangEngine:
        base = sglang_engine(role, loras=loras if role is Role.AGGREGATED else (), **backend, **args)
        return WithAdapter(base.setup, base.config)

    report = await check_engine(
        lambda role: make(role, (adapter,)),
        vocab_size=1000,
        connector=SglangConnector(),
        unstartable=lambda role: make(role, attention_backend="nonsense"),
        lora=adapter.name,
        timeout_s=180,
    )
    print(report)  # noqa: T201
    report.raise_if_failed()
