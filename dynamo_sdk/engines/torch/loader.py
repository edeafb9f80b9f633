"""From a folder in the Hugging Face style to a model that is ready to run, and the facts about it."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from dynamo_sdk.engines.weights import files_digest
from dynamo_sdk.errors import EngineStartError

from .attention import ATTENTION_NAME, paged_attention
from .cache import KVGeometry
from .config import TorchConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # they rescale by the longest sequence of a batch
_ONE_LOAD = threading.Lock()  # from_pretrained changes state of the process: two at once lose tied weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """``network`` is the causal language model, in evaluation mode, on ``device``.

    ``digest`` names config and weights: equal digests mean that KV of one fits the other.
    """

    network: Any
    device: torch.device
    geometry: KVGeometry
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    digest: str


def load_model(path: str, config: TorchConfig) -> LoadedModel:
    """Read config and safetensors from the local folder ``path``; never the network.

    Raises ``EngineStartError``, naming what is missing and what would do.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise EngineStartError(
            f"no model in {path!r}: it must be a folder with config.json and *.safetensors"
        )
    if not any(folder.glob("*.safetensors")):
        raise EngineStartError(f"no *.safetensors in {path!r}; other weight formats are not read")
    device = _device(config)
    try:
        with _ONE_LOAD:
            network = _load_network(folder, device, config)
    except EngineStartError:
        raise
    except Exception as error:  # whatever transformers and safetensors find wrong with the files
        raise EngineStartError(f"cannot load {path!r}: {error}") from error
    geometry = _geometry(network)
    return LoadedModel(
        network=network,
        device=device,
        geometry=geometry,
        context_length=_context_length(network.config, config),
        vocab_size=network.config.vocab_size,
        eos_token_ids=_eos_token_ids(network),
        digest=model_digest(folder),
    )


def model_digest(folder: Path) -> str:
    """32 hex digits over what the config says and every byte of the weights."""
    digest = hashlib.blake2b(digest_size=16)
    settings = json.loads((folder / "config.json").read_text())
    for key in ("_name_or_path", "transformers_version"):
        settings.pop(key, None)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(files_digest(folder.glob("*.safetensors")).encode())
    return digest.hexdigest()


def _device(config: TorchConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise EngineStartError("device 'cuda' was asked for, but torch sees no CUDA device; try device: cpu")
    wants_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if wants_cuda else torch.device("cpu")


def _load_network(folder: Path, device: torch.device, config: TorchConfig) -> Any:
    transformers.AttentionInterface.register(ATTENTION_NAME, paged_attention)
    dtype: torch.dtype | str = "auto" if device.type == "cuda" else torch.float32
    if config.dtype != "auto":
        dtype = _DTYPES[config.dtype]
    has_progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        network, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    finally:
        if has_progress_bar:
            transformers_logging.enable_progress_bar()
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise EngineStartError(
            f"{folder} has no weights for {', '.join(missing[:5])} ({len(missing)} in all)"
        )
    return network.to(device).eval().requires_grad_(False)


def _geometry(network: Any) -> KVGeometry:
    config = network.config
    num_heads = config.num_attention_heads
    return KVGeometry(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        dtype=network.dtype,
    )


def _context_length(model_config: Any, config: TorchConfig) -> int:
    longest: int | None = getattr(model_config, "max_position_embeddings", None)
    if longest is None:
        raise EngineStartError(
            "config.json does not say max_position_embeddings: the model's longest sequence"
        )
    rope = getattr(model_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        longest = min(longest, rope.get("original_max_position_embeddings") or longest)
    if config.context_length is None:
        return longest
    if config.context_length > longest:
        raise EngineStartError(
            f"context_length {config.context_length} is more than the {longest} tokens this model can do"
        )
    return config.context_length


def _eos_token_ids(network: Any) -> tuple[int, ...]:
    generation = getattr(network, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = network.config.eos_token_id
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
