"""How many KV blocks to set up where the deploy file does not say."""

from __future__ import annotations

import psutil
import torch

from dynamo_sdk.errors import EngineStartError

from .config import TorchConfig
from .loader import LoadedModel

_CPU_SHARE, _CPU_LIMIT_BYTES = 0.25, 4 << 30  # a laptop runs other things too
_CUDA_SHARE = 0.85  # of what is free beside the weights; the rest is for activations


def choose_num_blocks(config: TorchConfig, model: LoadedModel) -> int:
    """See ``TorchConfig``. Raises ``EngineStartError`` when not even one block fits."""
    if config.num_blocks is not None:
        return config.num_blocks
    block_bytes = model.geometry.block_bytes(config.block_size)
    if config.kv_memory_bytes is not None:
        num_blocks = config.kv_memory_bytes // block_bytes
        limit = f"kv_memory_bytes {config.kv_memory_bytes}"
    else:
        wanted = config.max_num_seqs * -(-model.context_length // config.block_size)
        free_bytes = _free_bytes(model.device)
        num_blocks = min(wanted, free_bytes // block_bytes)
        limit = f"the {free_bytes} bytes that are free"
    if num_blocks < 1:
        raise EngineStartError(
            f"one KV block of {config.block_size} tokens needs {block_bytes} bytes, more than {limit}"
        )
    return num_blocks


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(_CUDA_SHARE * free_bytes)
    return min(_CPU_LIMIT_BYTES, int(_CPU_SHARE * psutil.virtual_memory().available))
