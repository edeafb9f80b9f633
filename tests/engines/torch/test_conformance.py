"""The engine keeps every promise that the public conformance kit knows of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import check_engine
from dynamo_sdk.types import ModelSpec, Role

from .adapters import save_adapter
from .models import VOCAB_SIZE

CONFIG = TorchConfig(device="cpu", dtype="float32", block_size=4, num_blocks=600, num_threads=1)


@pytest.mark.anyio
async def test_conformance(llama: Path, references: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    loras = [
        save_adapter(references["llama"], tmp_path / f"{seed}", seed=seed, rank=seed).path for seed in (1, 2)
    ]

    def new_engine(role: Role) -> TorchEngine:
        return TorchEngine(EngineSetup(model=ModelSpec(name="m", path=str(llama)), role=role), CONFIG)

    def without_model(role: Role) -> TorchEngine:
        return TorchEngine(
            EngineSetup(model=ModelSpec(name="m", path=str(llama / "nowhere")), role=role), CONFIG
        )

    report = await check_engine(new_engine, vocab_size=VOCAB_SIZE, unstartable=without_model, loras=loras)
    report.raise_if_failed()
    assert {result.name for result in report.skipped} == {
        "ranks_are_those_declared",
        "source_gives_what_generate_gives",
        "source_refuses_at_open",
        "source_close_frees",
        "source_raises_what_ended_it",
        "kv_events_follow_moves",
    }
