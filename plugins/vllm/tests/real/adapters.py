"""Adapters of random weights for the tests' model, and what ``transformers`` says with one merged in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dynamo_sdk.types import LoraSpec

from .conftest import model_folder


def make_adapter(folder: Path, *, seed: int = 1, rank: int = 4) -> LoraSpec:
    """A LoRA on the queries, with weights large enough to change every answer."""
    described = json.loads((Path(model_folder()) / "config.json").read_text())
    hidden = described["hidden_size"]
    heads = described["num_attention_heads"] * described["head_dim"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(described["num_hidden_layers"]):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(heads, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return LoraSpec(name=folder.name, path=str(folder))


def merged(adapter: LoraSpec) -> Any:
    """The model with the adapter's weights added to its own."""
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    config = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    tensors = load_file(Path(adapter.path) / "adapter_model.safetensors")
    for layer, block in enumerate(model.model.layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        down, up = (tensors[f"{stem}.lora_{part}.weight"] for part in "AB")
        block.self_attn.q_proj.weight.data += config["lora_alpha"] / config["r"] * up @ down
    return model


def greedy_of(model: Any, prompt: list[int]) -> list[int]:
    """What ``transformers`` says next."""
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
        )
    tokens: list[int] = whole[0, len(prompt) :].tolist()
    return tokens
