"""A correct engine with paged KV, small enough to be right at sight: the next token is a checksum of the
KV that its blocks hold, so that a wrong block gives wrong tokens. The planted faults are made from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines.loras import LoraTable
from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest, Overloaded
from dynamo_sdk.interfaces import (
    AdaptsLora,
    BlockMemory,
    BlockReservation,
    Engine,
    EngineFacts,
    ExposesBlocks,
    ItemSource,
    OpensSources,
    PublishesKVEvents,
    PublishesMetrics,
)
from dynamo_sdk.types import (
    BlocksRemoved,
    BlocksStored,
    FinishReason,
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEvent,
    KVEventBatch,
    KVLayout,
    LoadSnapshot,
    LoraSpec,
    Role,
    SamplingParams,
    TokenLogprobs,
    Usage,
    pack_tokens,
    unpack_tokens,
)

BLOCK_SIZE = 4
BLOCK_BYTES = BLOCK_SIZE * 4
NUM_BLOCKS = 512
CONTEXT_LENGTH = 1024
VOCAB_SIZE = 64
ADAPTERS = tuple(str(folder) for folder in Path(__file__).parents[:2])
"""Any folder is an adapter."""


class Memory(BlockMemory):
    def __init__(self) -> None:
        self.bytes = bytearray(NUM_BLOCKS * BLOCK_BYTES)
        self.on_write: Callable[[], None] = lambda: None

    @property
    def layout(self) -> KVLayout:
        return KVLayout(fingerprint="checksum", block_size=BLOCK_SIZE, block_bytes=BLOCK_BYTES)

    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        for index, block in enumerate(block_ids):
            into[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] = self.bytes[
                block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES
            ]

    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        self.on_write()
        for index, block in enumerate(block_ids):
            self.bytes[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = data[
                index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES
            ]


class Adapter(NamedTuple):
    """``weight`` goes into every token, ``number`` into the names of blocks."""

    weight: int
    number: int


class PagedSource(ItemSource[GenerateChunk]):
    """Something is always there: a token is made when it is taken."""

    def __init__(self, steps: Generator[GenerateChunk, None, None]) -> None:
        self.steps = steps
        self.is_over = False

    def listen(self, on_ready: Callable[[], None]) -> None:
        pass

    def take(self) -> GenerateChunk | None:
        chunk = next(self.steps)
        self.is_over = chunk.finish_reason is not None and next(self.steps, None) is None
        return chunk

    def close(self) -> None:
        self.steps.close()


class PagedEngine(Engine, OpensSources, AdaptsLora, ExposesBlocks, PublishesKVEvents, PublishesMetrics):
    """``is_broken``: it cannot start."""

    dp_size = 1
    rank = 0
    is_broken = False

    def __init__(self) -> None:
        self.memory = Memory()
        self.free = list(range(NUM_BLOCKS))
        self.some_are_free = anyio.Event()
        self.owned: dict[str, list[int]] = {}  # running, held or reserved
        self.num_running = 0
        self.is_open = False
        self.hash_of_block: dict[int, int] = {}
        self.stored: dict[int, tuple[int | None, tuple[int, ...]]] = {}  # hash -> parent, tokens
        self.sequence = 0
        self.step = 0
        self.adapters = LoraTable[Adapter]()
        self.num_loads = 0
        self.weights: dict[str, int] = {}
        self.adapter_of: dict[str, Adapter | None] = {}  # of requests that run
        self.event_listeners: list[Callable[[KVEventBatch], None]] = []
        self.metric_listeners: list[Callable[[ForwardPassMetrics], None]] = []

    async def start(self) -> EngineFacts:
        await checkpoint()
        if self.is_broken:
            raise EngineStartError("no weights")
        self.is_open = True
        return EngineFacts(
            context_length=CONTEXT_LENGTH,
            block_size=BLOCK_SIZE,
            num_blocks=NUM_BLOCKS,
            dp_size=self.dp_size,
        )

    async def close(self) -> None:
        self.is_open = False

    def load(self) -> LoadSnapshot:
        return LoadSnapshot(
            at_s=0.0, num_running=self.num_running, num_free_blocks=len(self.free), num_blocks=NUM_BLOCKS
        )

    def check_integrity(self) -> None:
        owned = [block for blocks in self.owned.values() for block in blocks]
        assert sorted(owned + self.free) == list(range(NUM_BLOCKS))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.check(request)
        with closing(self.adapted_steps(request)) as steps:
            while True:
                await checkpoint()
                chunk = next(steps, None)
                if chunk is None:
                    return
                yield chunk

    def open(self, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        self.check(request)
        return PagedSource(self.adapted_steps(request))

    async def load_lora(self, lora: LoraSpec) -> None:
        async def load() -> Adapter:
            if not await anyio.Path(lora.path).is_dir():
                raise InvalidRequest("no adapter there", param="lora")
            self.num_loads += 1
            return Adapter(self.weights.setdefault(lora.path, len(self.weights) + 1), self.num_loads)

        await self.adapters.load(lora, load)

    async def unload_lora(self, name: str) -> None:
        async def forget(_: Adapter) -> None:
            await checkpoint()

        await self.adapters.unload(name, forget)

    def loras(self) -> tuple[LoraSpec, ...]:
        return self.adapters.specs()

    def adapted_steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        with self.adapters.using(request.lora) as adapter:
            self.adapter_of[request.request_id] = adapter
            try:
                yield from self.steps(request)
            finally:
                del self.adapter_of[request.request_id]

    def adapter(self, request: GenerateRequest) -> Adapter | None:
        return self.adapter_of.get(request.request_id)

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        """One chunk per step; what the request holds goes when this is closed."""
        tokens = request.token_ids()
        position = request.num_generated_tokens
        key = request.request_id
        is_filled = request.role is Role.DECODE and key in self.owned
        num_cached = self.num_cached(request, tokens)
        self.owned.setdefault(key, [])
        self.num_running += 1
        hands_over = False
        try:
            for known in range(len(tokens) - 1 if is_filled else 0, len(tokens)):
                self.remember(request, tokens, known)
            self.report(num_prefill_tokens=len(tokens))
            while True:
                if not self.is_open:
                    raise EngineFailed("closed")
                token = self.next_token(request, position, len(tokens))
                tokens.append(token)
                position += 1
                reason = self.finish_reason(request, token, position)
                logprobs = self.logprobs(request, token)
                if reason is not None:
                    yield GenerateChunk((token,), logprobs, reason, self.usage(request, position, num_cached))
                    return
                yield GenerateChunk((token,), logprobs)
                if request.role is Role.PREFILL:
                    hands_over = True
                    usage = self.usage(request, position, num_cached)
                    yield GenerateChunk(finish_reason=FinishReason.HANDOVER, usage=usage)
                    return
                self.remember(request, tokens, len(tokens) - 1)
                self.report(num_prefill_tokens=0)
        finally:
            self.num_running -= 1
            if not hands_over:
                self.release_blocks(key)

    # What the planted faults replace

    def check(self, request: GenerateRequest) -> None:
        if not self.is_open:
            raise EngineFailed("not running")
        if not request.prompt:
            raise InvalidRequest("empty", param="prompt")
        if request.num_prompt_tokens + request.num_generated_tokens >= CONTEXT_LENGTH:
            raise InvalidRequest("too long", param="prompt")
        with self.adapters.using(request.lora):
            pass
        if request.dp_rank is not None and request.dp_rank >= self.dp_size:
            raise InvalidRequest("no such rank", param="dp_rank")
        self.check_sampling(request.sampling)

    def check_sampling(self, sampling: SamplingParams) -> None:
        if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise InvalidRequest("out of range")

    def num_cached(self, request: GenerateRequest, tokens: list[int]) -> int:
        """Tokens of the leading full blocks of the prompt that are stored."""
        num_blocks = request.num_prompt_tokens // BLOCK_SIZE
        ends = [(number + 1) * BLOCK_SIZE for number in range(num_blocks)]
        return next(
            (end - BLOCK_SIZE for end in ends if self.name(request, tokens, end) not in self.stored),
            num_blocks * BLOCK_SIZE,
        )

    def name(self, request: GenerateRequest, tokens: list[int], end: int) -> int:
        """Of the block that ends before ``end``."""
        return hash((self.adapter(request), request.cache_salt, *tokens[:end]))

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        total = 0
        for index, block in enumerate(self.owned[request.request_id]):
            kv = unpack_tokens(bytes(self.memory.bytes[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]))
            for offset, value in enumerate(kv[: num_tokens - index * BLOCK_SIZE]):
                total += (index * BLOCK_SIZE + offset + 1) * value
        chance = hash((request.sampling.seed, position)) if self.is_random(request.sampling) else 0
        total += self.weight(request)
        token = 10 + (total * 2654435761 + chance) % 2**32 % (VOCAB_SIZE - 10)
        return self.biased(request.sampling, token)

    def weight(self, request: GenerateRequest) -> int:
        adapter = self.adapter(request)
        return adapter.weight if adapter is not None else 0

    def is_random(self, sampling: SamplingParams) -> bool:
        is_narrow = sampling.top_k == 1 or sampling.top_p < 1e-3 or sampling.min_p == 1
        return sampling.temperature > 0 and not is_narrow

    def biased(self, sampling: SamplingParams, token: int) -> int:
        wanted = [other for other, bias in sampling.logit_bias.items() if bias >= 100]
        if wanted:
            return wanted[0]
        while sampling.logit_bias.get(token, 0) <= -100:
            token += 1
        return token

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        sampling = request.sampling
        if token in sampling.stop_token_ids and position >= sampling.min_tokens:
            return FinishReason.STOP
        if position >= sampling.max_tokens or request.num_prompt_tokens + position >= CONTEXT_LENGTH:
            return FinishReason.LENGTH
        return None

    def logprobs(self, request: GenerateRequest, token: int) -> tuple[TokenLogprobs, ...] | None:
        num_top = request.sampling.logprobs
        if num_top is None:
            return None
        return (TokenLogprobs(-0.1, ((token, -0.1), (token + 1, -2.4))[:num_top]),)

    def usage(self, request: GenerateRequest, position: int, num_cached: int) -> Usage:
        return Usage(request.num_prompt_tokens, position - request.num_generated_tokens, num_cached)

    # Blocks

    @property
    def block_memory(self) -> BlockMemory:
        return self.memory

    def remember(self, request: GenerateRequest, tokens: list[int], position: int) -> None:
        """Write the KV of one token; when it fills its block, say so."""
        blocks = self.owned[request.request_id]
        if position // BLOCK_SIZE >= len(blocks):
            blocks.append(self.take())
        at = blocks[position // BLOCK_SIZE] * BLOCK_BYTES + position % BLOCK_SIZE * 4
        self.memory.bytes[at : at + 4] = pack_tokens([tokens[position]])
        if (position + 1) % BLOCK_SIZE == 0:
            self.store(blocks[position // BLOCK_SIZE], request, tokens, position + 1)

    def take(self) -> int:
        if not self.free:
            raise Overloaded("no block is free")
        block = self.free.pop(0)
        block_hash = self.hash_of_block.pop(block, None)
        if block_hash is not None and block_hash not in self.hash_of_block.values():
            self.evict(block_hash)
        return block

    def evict(self, block_hash: int) -> None:
        del self.stored[block_hash]
        self.publish(BlocksRemoved(block_hashes=(block_hash,)))

    def store(self, block: int, request: GenerateRequest, tokens: list[int], end: int) -> None:
        block_hash = self.name(request, tokens, end)
        parent = self.name(request, tokens, end - BLOCK_SIZE) if end > BLOCK_SIZE else None
        self.hash_of_block[block] = block_hash
        if block_hash not in self.stored:
            self.stored[block_hash] = (parent, tuple(tokens[end - BLOCK_SIZE : end]))
            self.publish(self.stored_event(block_hash))

    def stored_event(self, block_hash: int) -> BlocksStored:
        parent, tokens = self.stored[block_hash]
        return BlocksStored(
            block_hashes=(block_hash,), parent_hash=parent, token_ids=tokens, block_size=BLOCK_SIZE
        )

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        return tuple(self.owned[request_id])

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        await checkpoint()
        num_blocks = -(-(len(request.token_ids()) - 1) // BLOCK_SIZE)
        while len(self.free) < num_blocks:
            await self.some_are_free.wait()
        blocks = [self.take() for _ in range(num_blocks)]
        self.owned[request.request_id] = blocks
        return BlockReservation(block_ids=tuple(blocks), num_cached_blocks=0)

    def release_blocks(self, request_id: str) -> None:
        self.free += self.owned.pop(request_id, [])
        self.some_are_free.set()
        self.some_are_free = anyio.Event()

    # Feeds

    def publish(self, event: KVEvent) -> None:
        for listener in self.event_listeners:
            listener(KVEventBatch(sequence=self.sequence, dp_rank=self.rank, events=(event,)))
        self.sequence += 1

    def report(self, *, num_prefill_tokens: int) -> None:
        for listener in self.metric_listeners:
            listener(
                ForwardPassMetrics(
                    step=self.step,
                    at_s=self.step * 0.001,
                    wall_s=0.001,
                    num_prefill_requests=int(num_prefill_tokens > 0),
                    num_prefill_tokens=num_prefill_tokens,
                    num_free_blocks=len(self.free),
                )
            )
        self.step += 1

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self.event_listeners.append(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        events = tuple(self.stored_event(block_hash) for block_hash in self.stored)
        return (KVEventBatch(sequence=self.sequence - 1, dp_rank=self.rank, events=events),)

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self.metric_listeners.append(listener)
