"""The conformance kit, in all roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.testing import check_engine
from dynamo_sdk_sglang.handover import SglangConnector

from .conftest import make_adapter, sglang_engine

pytestmark = pytest.mark.anyio


@pytest.mark.timeout(3000)
async def test_it_keeps_the_contract(tmp_path: Path):
    adapters = [make_adapter(tmp_path / "one"), make_adapter(tmp_path / "other", seed=2, rank=12)]
    report = await check_engine(
        lambda role: sglang_engine(role, loras=adapters),
        vocab_size=1000,
        connector=SglangConnector(),
        unstartable=lambda role: sglang_engine(role, attention_backend="nonsense"),
        loras=[adapter.path for adapter in adapters],
        timeout_s=600,  # each start of SGLang imports it three times, which takes minutes on a busy machine
    )
    print(report)  # noqa: T201
    report.raise_if_failed()
