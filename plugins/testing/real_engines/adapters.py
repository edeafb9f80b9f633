"""Adapters of random weights for the tests' model, and the model with one merged in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dynamo_sdk.types import LoraSpec

from .models import model_folder, reference


def make_adapter(folder: Path, *, layer: str = "q_proj", seed: int = 1, rank: int = 4) -> LoraSpec:
    """A LoRA on attention's queries or its output, ``o_proj``, with weights large enough to change every
    answer."""
    described = json.loads((Path(model_folder()) / "config.json").read_text())
    hidden = described["hidden_size"]
    heads = described["num_attention_heads"] * described["head_dim"]
    num_in, num_out = {"q_proj": (hidden, heads), "o_proj": (heads, hidden)}[layer]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number in range(described["num_hidden_layers"]):
        stem = f"base_model.model.model.layers.{number}.self_attn.{layer}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, num_in, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(num_out, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": [layer],
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return LoraSpec(name=folder.name, path=str(folder))


def merged(adapter: LoraSpec) -> Any:
    """The model with the adapter's weights added to its own."""
    model = reference()
    config = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    tensors = load_file(Path(adapter.path) / "adapter_model.safetensors")
    (layer,) = config["target_modules"]
    for number, block in enumerate(model.model.layers):
        stem = f"base_model.model.model.layers.{number}.self_attn.{layer}"
        down, up = (tensors[f"{stem}.lora_{part}.weight"] for part in "AB")
        getattr(block.self_attn, layer).weight.data += config["lora_alpha"] / config["r"] * up @ down
    return model
