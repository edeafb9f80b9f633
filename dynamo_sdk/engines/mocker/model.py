"""What a simulated engine knows of the model: four numbers from ``config.json``, if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from dynamo_sdk.errors import EngineStartError

from .config import MockerConfig

_DEFAULT_VOCAB_SIZE = 32_000
_DEFAULT_KV_BYTES_PER_TOKEN = 131_072  # 32 layers, 8 KV heads of 128, two bytes each, keys and values
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MockedModel:
    """``context_length`` None: as long as the blocks last."""

    vocab_size: int
    context_length: int | None
    eos_token_ids: tuple[int, ...]
    kv_bytes_per_token: int


class _ModelFile(msgspec.Struct):
    """The part of ``config.json`` that is read; what a family leaves out is None."""

    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    eos_token_id: int | list[int] | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    dtype: str | None = None
    torch_dtype: str | None = None


def read_model(path: str, config: MockerConfig) -> MockedModel:
    """What ``config`` says, else what the folder ``path`` says, else defaults.

    Raises ``EngineStartError`` when ``config.json`` is there and cannot be read.
    """
    file = Path(path) / "config.json"
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_ModelFile) if file.is_file() else _ModelFile()
    except (OSError, msgspec.DecodeError) as error:
        raise EngineStartError(f"cannot read {file}: {error}") from error
    eos = found.eos_token_id
    kv_bytes = config.kv_bytes_per_token
    return MockedModel(
        vocab_size=config.vocab_size or found.vocab_size or _DEFAULT_VOCAB_SIZE,
        context_length=config.context_length or found.max_position_embeddings,
        eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        kv_bytes_per_token=_kv_bytes_per_token(found) if kv_bytes is None else kv_bytes,
    )


def _kv_bytes_per_token(found: _ModelFile) -> int:
    num_heads = found.num_attention_heads
    if not found.num_hidden_layers or not num_heads:
        return _DEFAULT_KV_BYTES_PER_TOKEN
    head_dim = found.head_dim or (found.hidden_size or 0) // num_heads
    dtype_bytes = _DTYPE_BYTES.get(found.dtype or found.torch_dtype or "", 2)
    return 2 * found.num_hidden_layers * (found.num_key_value_heads or num_heads) * head_dim * dtype_bytes
