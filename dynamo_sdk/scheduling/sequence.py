"""``Sequence``: what the scheduler knows of one request, and when it is finished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.kv.hashing import cache_keys, cache_root, next_cache_key
from dynamo_sdk.types.outputs import FinishReason
from dynamo_sdk.types.requests import GenerateRequest, Role
from dynamo_sdk.types.tokens import BYTES_PER_TOKEN, pack_tokens, unpack_tokens

from .step import SchedulerConfig, SequenceUpdate


class SequenceState(Enum):
    """See the table in ``scheduler``."""

    WAITING = auto()
    LOADING = auto()
    RESERVED = auto()
    RUNNING = auto()
    HELD = auto()
    GONE = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Changed by the scheduler only.

    ``order``: (priority, arrival); smaller runs first. ``output_ids``: output tokens of all legs.
    ``num_tokens``: all known ones, prompt and output.
    ``num_computed_tokens``: leading tokens whose KV lies in ``block_ids``.
    ``cache_root``: the parent of its first block's key; ``keys``: keys of its leading full blocks.
    ``max_length``, ``min_stop_length``: in tokens, prompt included. ``is_cacheable``: others may find its
    blocks. ``num_cached_tokens``: prompt tokens found when it was first admitted, in the cache or by loading.
    ``is_onboarding``: more of it may lie in tiers below the device; asked once.
    """

    request: GenerateRequest
    order: tuple[int, int]
    state: SequenceState
    num_prompt_tokens: int
    num_tokens: int
    output_ids: list[int]
    cache_root: CacheKey
    keys: list[CacheKey]
    stop_token_ids: frozenset[int]
    max_length: int
    min_stop_length: int
    block_ids: tuple[int, ...] = ()
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    is_cacheable: bool = False
    is_onboarding: bool = False

    def packed_tokens(self, start: int, end: int) -> bytes:
        """Its tokens from ``start`` up to ``end``, packed. The prompt's are so already."""
        num_prompt_tokens = self.num_prompt_tokens
        if start >= num_prompt_tokens:
            return pack_tokens(self.output_ids[start - num_prompt_tokens : end - num_prompt_tokens])
        of_prompt = self.request.prompt[start * BYTES_PER_TOKEN : end * BYTES_PER_TOKEN]
        if end <= num_prompt_tokens:
            return of_prompt
        return of_prompt + pack_tokens(self.output_ids[: end - num_prompt_tokens])

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    def token_ids(self) -> tuple[int, ...]:
        """All known tokens."""
        return (*unpack_tokens(self.request.prompt), *self.output_ids)

    def append(self, token_id: int) -> None:
        """One more output token is known."""
        self.output_ids.append(token_id)
        self.num_tokens += 1

    @property
    def is_just_decoding(self) -> bool:
        """Its next step computes one output token, and only its length can end it."""
        return (
            self.num_tokens - self.num_computed_tokens == 1
            and self.num_tokens > self.num_prompt_tokens
            and not self.stop_token_ids
            and self.request.role is not Role.PREFILL
        )

    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ends with its last token; None = it goes on."""
        length = self.num_tokens
        if self.output_ids[-1] in self.stop_token_ids and length >= self.min_stop_length:
            return FinishReason.STOP
        if length >= self.max_length:
            return FinishReason.LENGTH
        return FinishReason.HANDOVER if self.request.role is Role.PREFILL else None

    def update(self, finish_reason: FinishReason | None) -> SequenceUpdate:
        """Its last token, and why it ends with it."""
        return SequenceUpdate(
            request_id=self.request.request_id,
            token_id=self.output_ids[-1],
            finish_reason=finish_reason,
            num_output_tokens=len(self.output_ids),
            num_cached_tokens=self.num_cached_tokens or 0,
        )

    def check_integrity(self, block_size: int) -> None:
        """Raise ``AssertionError`` when its counts do not add up."""
        name = self.request.request_id
        assert (self.state is SequenceState.WAITING) == (not self.block_ids), f"{name}: blocks while waiting"
        assert self.num_tokens == self.num_prompt_tokens + len(self.output_ids), f"{name}: a token is lost"
        assert self.num_computed_tokens < self.num_tokens, f"{name}: nothing left to compute"
        assert self.num_computed_tokens <= len(self.block_ids) * block_size, f"{name}: KV without a block"
        assert len(self.block_ids) == len(set(self.block_ids)), f"{name}: holds a block twice"
        assert self.num_prompt_tokens < self.num_tokens + 1 <= self.max_length + 1

    def extend_keys(self, num_blocks: int, block_size: int) -> None:
        """Know the keys of at least the first ``num_blocks`` blocks, all of which are full."""
        keys = self.keys
        while len(keys) < num_blocks:
            start = len(keys) * block_size
            tokens = self.packed_tokens(start, start + block_size)
            keys.append(next_cache_key(keys[-1] if keys else self.cache_root, tokens))


def root_of(request: GenerateRequest, config: SchedulerConfig) -> CacheKey:
    """The parent of the key of its first block."""
    namespace = config.cache_namespace
    if request.lora is not None:
        namespace += config.lora_digests.get(request.lora, b"")
    return cache_root(namespace, lora=request.lora, cache_salt=request.cache_salt)


def findable_keys(request: GenerateRequest, config: SchedulerConfig) -> list[CacheKey]:
    """Keys of its full blocks, as far as they may be found instead of computed: not its last token."""
    root = root_of(request, config)
    tokens = request.prompt + request.generated
    return cache_keys(tokens[:-BYTES_PER_TOKEN], config.block_size, root=root)


def open_sequence(
    request: GenerateRequest,
    config: SchedulerConfig,
    *,
    order: tuple[int, int],
    state: SequenceState,
    keys: Iterable[CacheKey] | None = None,
    is_onboarding: bool = False,
) -> Sequence:
    """``keys``: of its leading full blocks, where somebody knows them already.

    Raises ``InvalidRequest`` for a request that this worker can never run.
    """
    num_prompt_tokens, max_tokens = request.num_prompt_tokens, request.sampling.max_tokens
    num_tokens = num_prompt_tokens + request.num_generated_tokens
    if not num_prompt_tokens:
        raise InvalidRequest("the prompt is empty; it needs at least one token", param="prompt")
    if num_tokens >= config.max_length:
        raise InvalidRequest(
            f"this model's maximum context length is {config.max_length} tokens, prompt and output together; "
            f"the request has {num_tokens} already, and at most {config.max_length - 1} leave room for more",
            param="prompt",
        )
    if max_tokens <= request.num_generated_tokens:
        raise InvalidRequest(
            f"max_tokens must be above {request.num_generated_tokens}, the number of tokens generated "
            f"already; it is {max_tokens}",
            param="max_tokens",
        )
    root = root_of(request, config)
    stop_token_ids = frozenset(request.sampling.stop_token_ids)
    if not request.sampling.ignore_eos:
        stop_token_ids |= config.eos_token_ids
    return Sequence(
        request=request,
        order=order,
        state=state,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        output_ids=unpack_tokens(request.generated),
        cache_root=root,
        is_onboarding=is_onboarding,
        keys=(
            cache_keys(request.prompt + request.generated, config.block_size, root=root)
            if keys is None
            else list(keys)
        ),
        stop_token_ids=stop_token_ids,
        max_length=min(num_prompt_tokens + max_tokens, config.max_length),
        min_stop_length=num_prompt_tokens + request.sampling.min_tokens,
    )
