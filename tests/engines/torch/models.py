"""Tiny random models of each architecture, and what ``transformers`` itself makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

VOCAB_SIZE = 101
CONTEXT_LENGTH = 160

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**_SIZES),
    "qwen2": transformers.Qwen2Config(
        **_SIZES, use_sliding_window=True, sliding_window=11, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**_SIZES, head_dim=16),
    "mistral": transformers.MistralConfig(**_SIZES, sliding_window=13),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=CONTEXT_LENGTH,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def save_model(architecture: str, folder: Path) -> Path:
    """A random model whose next token depends strongly on all tokens before it."""
    torch.manual_seed(len(architecture))
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    return folder


def load_reference(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy_reference(model: torch.nn.Module, prompt: list[int], num_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


@torch.inference_mode()
def logprobs_reference(model: torch.nn.Module, tokens: list[int], num_last: int) -> torch.Tensor:
    """Log-softmax of the logits from which the last ``num_last`` of ``tokens`` were chosen."""
    logits = model(torch.tensor([tokens])).logits[0]
    return logits[-num_last - 1 : -1].log_softmax(-1)


def random_prompt(seed: int, num_tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=generator).tolist()
