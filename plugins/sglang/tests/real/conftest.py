"""The real SGLang on a tiny local model. Runs on a CPU and, unchanged, where there is a GPU.

Environment: ``MODEL_DIR``, a folder in the Hugging Face style; without it, the model that dynamo_sdk ships.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dynamo_sdk
from dynamo_sdk.interfaces import EngineSetup, KVTierSetup
from dynamo_sdk.types import LoraSpec, ModelSpec, Role
from dynamo_sdk_sglang.config import SglangConfig
from dynamo_sdk_sglang.engine import SglangEngine
from dynamo_sdk_sglang.handover import SglangConnector
from dynamo_sdk_sglang.plugin import CONNECTOR

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


def model_folder() -> str:
    default = Path(dynamo_sdk.__file__).parent / "demo_model"
    return os.environ.get("MODEL_DIR", str(default))


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


def make_adapter(folder: Path, *, seed: int = 1, rank: int = 4) -> LoraSpec:
    """A LoRA on attention's output, with weights large enough to change every answer."""
    described = json.loads((Path(model_folder()) / "config.json").read_text())
    hidden = described["hidden_size"]
    heads = described["num_attention_heads"] * described["head_dim"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(described["num_hidden_layers"]):
        stem = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, heads, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["o_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return LoraSpec(name=folder.name, path=str(folder))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[SglangEngine]:
    started = sglang_engine(Role.AGGREGATED)
    await started.start()
    yield started
    await started.close()
