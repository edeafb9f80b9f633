"""The engine keeps every promise that the public conformance kit knows of, at every speed."""

from __future__ import annotations

import pytest

from dynamo_sdk.engines.mocker import MockerConfig
from dynamo_sdk.engines.mocker.engine import MockerEngine
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.testing import check_engine
from dynamo_sdk.testing.engine_loras import LORA_CHECKS
from dynamo_sdk.types import ModelSpec, Role

SMALL = {"context_length": 2048, "block_size": 4, "num_blocks": 600, "max_num_batched_tokens": 512}
LORAS = {check.__name__ for check in LORA_CHECKS}


TIER = {"kind": "ram", "capacity": "1GiB", "eviction": "leaf-first"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "config",
    [
        MockerConfig(**SMALL, speedup_ratio=1e6),
        MockerConfig(**SMALL, speedup_ratio=1e3),
        MockerConfig(**SMALL, speedup_ratio=1e6, dp_size=3),
        MockerConfig(**(SMALL | {"max_num_seqs": 3, "num_blocks": 520}), speedup_ratio=1e6),
        MockerConfig(**SMALL, speedup_ratio=1e3, tiers=[TIER]),  # type: ignore[list-item]
    ],
    ids=["without time", "with steps of 20 microseconds", "three ranks", "three at once", "a tier"],
)
async def test_conformance(config: MockerConfig) -> None:
    def new_engine(role: Role) -> MockerEngine:
        return MockerEngine(EngineSetup(model=ModelSpec(name="m", path="."), role=role), config)

    report = await check_engine(new_engine)
    report.raise_if_failed()
    skipped = {result.name for result in report.skipped}
    only_for_tiers = {"kv_events_follow_moves"} if not config.tiers else set()
    only_for_ranks = {"ranks_are_those_declared"} if config.dp_size == 1 else set()
    assert skipped - LORAS == only_for_ranks | only_for_tiers | {
        "close_after_failed_start",
        "narrow_sampling_is_greedy",
        "logit_bias_is_honoured",
        "strange_sampling_is_refused",
        "embeddings_have_length_one",
        "empty_embedding_is_refused",
        "release_is_idempotent",
        "reservation_can_be_given_back",
        "cancelled_reservation_leaves_nothing",
    }
