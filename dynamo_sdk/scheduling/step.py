"""What goes into the scheduler once, and what goes back and forth with each engine step."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.types.outputs import FinishReason
from dynamo_sdk.types.requests import GenerateRequest
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN, unpack_tokens


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one worker, and what it must know of the model.

    ``context_length``: the model's longest sequence, prompt and output together, in tokens.
    ``max_num_batched_tokens``: tokens computed in one step, over all sequences.
    ``eos_token_ids``: the model's own end tokens.
    ``enable_growth_reserve``: admit nobody unless each running request could still get its next block. With
    it there are fewer preemptions; without it first tokens come sooner when memory is short.
    ``cache_namespace``: names model, dtype and block layout; equal namespaces may share KV.
    ``lora_digests``: by name, what tells an adapter from others that had or will have it; whoever loads
    adapters changes it while the scheduler runs.
    ``events_have_tokens``: False leaves ``BlocksStored.token_ids`` empty; who listens goes by the hashes.
    Raises ``ConfigError`` for a limit that cannot work.
    """

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    context_length: int
    eos_token_ids: frozenset[int] = frozenset()
    enable_prefix_caching: bool = True
    enable_growth_reserve: bool = True
    cache_namespace: bytes = b""
    lora_digests: dict[str, bytes] = {}
    events_have_tokens: bool = True

    @property
    def max_length(self) -> int:
        """The longest sequence that fits: the model's limit, or the pool's where that is smaller."""
        return min(self.context_length, self.num_blocks * self.block_size)

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}", param=name)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running request computes a token per step",
                param="max_num_batched_tokens",
            )
        if self.context_length < 2:
            raise ConfigError(
                f"context_length must be at least 2 (one token in, one out), not {self.context_length}",
                param="context_length",
            )


class ScheduledSequence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sequence's part of a step.

    ``tokens``: the tokens to compute now, packed; the first one has position ``start``.
    ``block_ids``: the whole block table; position ``p`` lies in ``block_ids[p // block_size]``.
    ``is_sampling``: these are the last known tokens, so the step must sample the next one.
    ``num_output_tokens``: output so far, which is the position of the sampled token (for the seed).
    """

    request: GenerateRequest
    tokens: bytes
    start: int
    block_ids: tuple[int, ...]
    is_sampling: bool
    num_output_tokens: int

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """How many tokens are to be computed."""
        return len(self.tokens) // BYTES_PER_TOKEN

    @property
    def token_ids(self) -> tuple[int, ...]:
        """``tokens``, unpacked."""
        return tuple(unpack_tokens(self.tokens))


class Onboarding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that was admitted and is LOADING: its blocks from ``num_cached_blocks`` on are to be filled
    from elsewhere, as many as somebody has and thinks worth it; then ``end_onboarding``.

    ``keys`` and ``block_ids``: of all its blocks that may be found instead of computed, in order.
    ``num_tokens``: all that it has, prompt and output.
    """

    request: GenerateRequest
    keys: tuple[CacheKey, ...]
    block_ids: tuple[int, ...]
    num_cached_blocks: int
    num_tokens: int

    @property
    def request_id(self) -> str:
        return self.request.request_id


WantsLoad = Callable[[Onboarding], bool]
"""Whether a request that is being admitted waits for KV from elsewhere, or is computed at once. It may have
no ``block_ids`` yet; with True it gets them."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One forward pass. Sequences that decode come first, then those that prefill.

    An empty step means that nothing can run before something is added, aborted or released; it needs
    no ``complete``. ``num_decode_kv_tokens``: KV length over all decodes, each new token included.
    ``onboarding``: who waits for KV from elsewhere from now on; also in an empty step.
    """

    number: int
    sequences: tuple[ScheduledSequence, ...]
    num_prefill_requests: int
    num_prefill_tokens: int
    num_decode_requests: int
    num_decode_kv_tokens: int
    preempted: tuple[str, ...] = ()
    onboarding: tuple[Onboarding, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.num_prefill_tokens + self.num_decode_requests


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """``num_steps`` steps to come, each of ``num_decode_requests`` decodes. ``num_decode_kv_tokens`` is the
    first one's, as in ``Step``; each next one has ``num_decode_requests`` more."""

    num_steps: int
    num_decode_requests: int
    num_decode_kv_tokens: int


class SequenceUpdate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One new token of one request. ``num_output_tokens`` counts it, and those of earlier legs."""

    request_id: str
    token_id: int
    finish_reason: FinishReason | None
    num_output_tokens: int
    num_cached_tokens: int
