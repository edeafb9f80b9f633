"""LoRA adapters of random weights, and the model with one merged into its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dynamo_sdk.types import LoraSpec

from .models import load_reference

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
ALPHA = 6


def save_adapter(
    model: torch.nn.Module, folder: Path, *, seed: int = 1, rank: int = 3, targets: tuple[str, ...] = TARGETS,
    **config: object,
) -> LoraSpec:  # fmt: skip
    """Large enough to change every answer."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            num_out, num_in = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, num_in, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(
                num_out, rank, generator=generator
            )
    folder.mkdir(exist_ok=True)
    save_file({name: 0.3 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    settings: dict[str, object] = {
        "peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": list(targets), "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return LoraSpec(name=folder.name, path=str(folder))


def merged(model_folder: Path, adapter: LoraSpec, *, scale: float | None = None) -> torch.nn.Module:
    model = load_reference(model_folder)
    config: dict[str, Any] = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    tensors = load_file(Path(adapter.path) / "adapter_model.safetensors")
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, down in tensors.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = tensors[key.replace("lora_A", "lora_B")]
                modules[name].weight += (scale or config["lora_alpha"] / config["r"]) * up @ down  # type: ignore[operator]
    return model
