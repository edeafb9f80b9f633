"""The model that real engines are tested with, and what ``transformers`` makes of it.

Environment: ``MODEL_DIR``, a folder in the Hugging Face style; without it, the model that dynamo_sdk ships.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import dynamo_sdk


def model_folder() -> str:
    default = Path(dynamo_sdk.__file__).parent / "demo_model"
    return os.environ.get("MODEL_DIR", str(default))


def reference() -> Any:
    """By ``transformers``."""
    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)


def greedy_of(model: Any, prompt: list[int]) -> list[int]:
    """What ``transformers`` says next."""
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
        )
    tokens: list[int] = whole[0, len(prompt) :].tolist()
    return tokens
