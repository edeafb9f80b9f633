"""The real vLLM on a tiny local model. Runs on the CPU build and, unchanged, where there is a GPU.

Environment: ``MODEL_DIR``, see ``real_engines.models``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from importlib.util import find_spec

import pytest

SMALL = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
os.environ.update(SMALL)

from dynamo_sdk.interfaces import EngineSetup, KVSharing, KVTierSetup  # noqa: E402
from dynamo_sdk.types import LoraSpec, ModelSpec, Role  # noqa: E402
from dynamo_sdk_vllm.config import VllmConfig  # noqa: E402
from dynamo_sdk_vllm.engine import VllmEngine  # noqa: E402
from dynamo_sdk_vllm.handover import CONNECTOR, VllmNixlConnector  # noqa: E402
from real_engines.models import model_folder  # noqa: E402

from .warm_start import warm_processes  # noqa: E402

if find_spec("vllm") is None:
    raise pytest.UsageError("these tests need an environment with vLLM in it: make test-engines")

LEASE_S = 12.0


def vllm_engine(
    role: Role,
    *,
    num_blocks: int = 64,
    loras: Iterable[LoraSpec] = (),
    kv_tiers: Iterable[KVTierSetup] = (),
    kv_sharing: KVSharing | None = None,
    **args: object,
) -> VllmEngine:
    """Not yet started."""
    is_leg = role is not Role.AGGREGATED
    setup = EngineSetup(
        model=ModelSpec(name="model", path=model_folder()),
        role=role,
        connector=CONNECTOR if is_leg else None,
        connector_args=VllmNixlConnector().engine_args(role) if is_leg else {},
        loras=tuple(loras),
        kv_tiers=tuple(kv_tiers),
        kv_sharing=kv_sharing,
    )
    config = VllmConfig(
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=32,
        num_gpu_blocks_override=num_blocks,
        max_num_seqs=8,
        lease_s=LEASE_S,
        **args,
    )
    return VllmEngine(setup, config)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def engines_start_soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        warm_processes(patch)
        yield


@pytest.fixture(scope="session")
async def prefill() -> AsyncIterator[VllmEngine]:
    """Few blocks: what was handed over and not fetched is soon overwritten."""
    engine = vllm_engine(Role.PREFILL, num_blocks=24)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
async def decode() -> AsyncIterator[VllmEngine]:
    engine = vllm_engine(Role.DECODE)
    await engine.start()
    yield engine
    await engine.close()
