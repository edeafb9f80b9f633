"""The real SGLang on a tiny local model. Runs on a CPU and, unchanged, where there is a GPU.

Environment: ``MODEL_DIR``, see ``real_engines.models``.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Sequence
from functools import partial
from importlib.util import find_spec

import pytest

from dynamo_sdk.interfaces import EngineSetup, KVTierSetup
from dynamo_sdk.types import LoraSpec, ModelSpec, Role
from dynamo_sdk_sglang.config import SglangConfig
from dynamo_sdk_sglang.engine import SglangEngine
from dynamo_sdk_sglang.handover import SglangConnector
from dynamo_sdk_sglang.plugin import CONNECTOR
from real_engines import adapters
from real_engines.models import model_folder

if find_spec("sglang") is None:
    raise pytest.UsageError("these tests need an environment with SGLang in it: make test-engines")


def has_gpu() -> bool:
    return subprocess.run(["sh", "-c", "nvidia-smi"], capture_output=True, check=False).returncode == 0


ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
ARGS: dict[str, object] = {
    "dtype": "float32",
    "context_length": 512,
    "page_size": 16,
    "max_running_requests": 8,
    "enable_deterministic_inference": True,
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "environment": ENVIRONMENT,
}
if not has_gpu():
    ENVIRONMENT |= {"SGLANG_USE_CPU_ENGINE": "1"}
    ARGS |= {"device": "cpu", "attention_backend": "torch_native"}


def sglang_engine(
    role: Role,
    *,
    num_blocks: int = 128,
    loras: Sequence[LoraSpec] = (),
    kv_tiers: Sequence[KVTierSetup] = (),
    **args: object,
) -> SglangEngine:
    """Not yet started. Events are looked at in the tests, so that blocks are few."""
    is_leg = role is not Role.AGGREGATED
    setup = EngineSetup(
        model=ModelSpec(name="model", path=model_folder()),
        role=role,
        connector=CONNECTOR if is_leg else None,
        connector_args=SglangConnector().engine_args(role) if is_leg else {},
        loras=tuple(loras),
        kv_tiers=tuple(kv_tiers),
    )
    given: dict[str, object] = {**ARGS, "max_total_tokens": num_blocks * 16}
    if loras and not has_gpu():
        given["lora_backend"] = "torch_native"
    return SglangEngine(setup, SglangConfig.model_validate({**given, **args}))


make_adapter = partial(adapters.make_adapter, layer="o_proj")
"""Of an adapter for the queries SGLang wants the values, too."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[SglangEngine]:
    started = sglang_engine(Role.AGGREGATED)
    await started.start()
    yield started
    await started.close()
