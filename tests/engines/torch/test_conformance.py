"""The engine keeps every promise that the public conformance kit knows of."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import check_engine
from dynamo_sdk.testing.engine_loras import LORA_CHECKS
from dynamo_sdk.types import ModelSpec, Role

from .models import VOCAB_SIZE

CONFIG = TorchConfig(device="cpu", dtype="float32", block_size=4, num_blocks=600, num_threads=1)
LORAS = {check.__name__ for check in LORA_CHECKS}


@pytest.mark.anyio
async def test_conformance(llama: Path) -> None:
    def new_engine(role: Role) -> TorchEngine:
        return TorchEngine(EngineSetup(model=ModelSpec(name="m", path=str(llama)), role=role), CONFIG)

    def without_model(role: Role) -> TorchEngine:
        return TorchEngine(
            EngineSetup(model=ModelSpec(name="m", path=str(llama / "nowhere")), role=role), CONFIG
        )

    report = await check_engine(new_engine, vocab_size=VOCAB_SIZE, unstartable=without_model)
    report.raise_if_failed()
    assert {result.name for result in report.skipped} - LORAS == {
        "ranks_are_those_declared",
        "source_gives_what_generate_gives",
        "source_refuses_at_open",
        "source_close_frees",
        "source_raises_what_ended_it",
        "kv_events_follow_moves",
    }
