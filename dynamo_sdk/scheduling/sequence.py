"""``Sequence``: what the scheduler knows of one request, and when it is finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.kv.hashing import next_cache_key
from dynamo_sdk.types.outputs import FinishReason
from dynamo_sdk.types.requests import GenerateRequest, Role
from dynamo_sdk.types.tokens import pack_tokens


class SequenceState(Enum):
    """See the table in ``scheduler``."""

    WAITING = auto()
    RESERVED = auto()
    RUNNING = auto()
    HELD = auto()
    GONE = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Changed by the scheduler only.

    ``order``: (priority, arrival); smaller runs first. ``token_ids``: prompt, then output, all legs.
    ``num_computed_tokens``: leading tokens whose KV lies in ``block_ids``.
    ``cache_root``: the parent of its first block's key; ``keys``: keys of its leading full blocks.
    ``max_length``, ``min_stop_length``: in tokens, prompt included.
    """

    request: GenerateRequest
    order: tuple[int, int]
    state: SequenceState
    token_ids: list[int]
    num_prompt_tokens: int
    cache_root: CacheKey
    keys: list[CacheKey]
    stop_token_ids: frozenset[int]
    max_length: int
    min_stop_length: int
    block_ids: tuple[int, ...] = ()
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = field(default=None)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ends with its last token; None = it goes on."""
        length = len(self.token_ids)
        if length >= self.min_stop_length and self.token_ids[-1] in self.stop_token_ids:
            return FinishReason.STOP
        if length >= self.max_length:
            return FinishReason.LENGTH
        return FinishReason.HANDOVER if self.request.role is Role.PREFILL else None

    def keys_until(self, num_blocks: int, block_size: int) -> list[CacheKey]:
        """Keys of at least the first ``num_blocks`` blocks, all of which are full."""
        keys = self.keys
        while len(keys) < num_blocks:
            start = len(keys) * block_size
            tokens = pack_tokens(self.token_ids[start : start + block_size])
            keys.append(next_cache_key(keys[-1] if keys else self.cache_root, tokens))
        return keys
