"""Names of blocks: a chain over everything that their bytes depend on.

A wrong block must be impossible, also after a restart with other weights under the same path. So a chain
begins with the files of the model and of the adapter, what vLLM makes of their configuration, its version,
and how it lays blocks out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from dynamo_sdk.engines.weights import folder_digest
from dynamo_sdk.interfaces import CacheKey
from dynamo_sdk.kv import cache_root, next_cache_key
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN, pack_tokens

DIGEST_BYTES = 16


class Lora(Protocol):
    """The part of vLLM's ``LoRARequest`` that names an adapter's weights; a number is never used again."""

    @property
    def lora_name(self) -> str: ...
    @property
    def lora_int_id(self) -> int: ...
    @property
    def lora_path(self) -> str: ...


class Named(Protocol):
    """The part of vLLM's ``Request`` that its blocks' names depend on."""

    all_token_ids: Sequence[int]
    cache_salt: str | None
    lora_request: Lora | None


class BlockNamer:
    """``namespace``: what all blocks of this engine have in common."""

    def __init__(
        self,
        namespace: bytes,
        block_size: int,
        digest_of: Callable[[Path], str] = folder_digest,
    ) -> None:
        self._namespace = namespace
        self._block_size = block_size
        self._digest_of = digest_of
        self._adapters: dict[int, str] = {}

    def root(self, request: Named) -> CacheKey:
        """Before the first block. Raises ``OSError`` for an adapter that cannot be read."""
        return cache_root(
            self._namespace, lora=self._adapter(request.lora_request), cache_salt=request.cache_salt
        )

    def start_anew(self, generation: bytes) -> None:
        """All names from now on are others than those until now."""
        self._namespace = namespace_of({"before": self._namespace.hex(), "generation": generation.hex()})

    def extend(self, keys: list[CacheKey], request: Named, num_blocks: int, *, root: CacheKey) -> None:
        """Make ``keys`` those of the first ``num_blocks`` blocks."""
        size = self._block_size
        packed = pack_tokens(request.all_token_ids[len(keys) * size : num_blocks * size])
        for start in range(0, len(packed), size * BYTES_PER_TOKEN):
            block = packed[start : start + size * BYTES_PER_TOKEN]
            keys.append(next_cache_key(keys[-1] if keys else root, block))

    def _adapter(self, lora: Lora | None) -> str | None:
        if lora is None:
            return None
        if lora.lora_int_id not in self._adapters:
            self._adapters[lora.lora_int_id] = self._digest_of(Path(lora.lora_path))
        return self._adapters[lora.lora_int_id]


def namespace_of(facts: Mapping[str, object]) -> bytes:
    """One name for all ``facts``: JSON types, the order of keys does not matter."""
    said = json.dumps(facts, sort_keys=True, default=str).encode()
    return blake2b(said, digest_size=DIGEST_BYTES).digest()
