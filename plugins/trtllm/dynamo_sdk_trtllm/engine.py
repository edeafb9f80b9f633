"""``TensorRTEngine``: the interfaces of an engine, on top of TensorRT-LLM's ``LLM``.

::

    GenerateRequest ─> translate ─> LLM.generate_async ─> Generation ─┐   TensorRT-LLM's own processes
    GenerateChunk   <─ translate <─ cumulative outputs  <─────────────┘   │
    KVEventBatch    <─ RankEvents <─ polled events      <─────────────────┤
    LoadSnapshot    <─ Gauges    <─ polled statistics   <─────────────────┘
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.engines.foreign_arguments import accepted, known_names
from dynamo_sdk.engines.runnable import is_handed_over, known_tokens, num_tokens_left
from dynamo_sdk.errors import (
    ConfigError,
    DynamoError,
    EngineFailed,
    EngineStartError,
    InvalidRequest,
    TransferError,
)
from dynamo_sdk.interfaces import Engine, EngineFacts, EngineSetup, PublishesKVEvents, PublishesMetrics
from dynamo_sdk.types import (
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    KVTransferParams,
    LoadSnapshot,
)

from .config import TensorRTConfig, llm_arguments, longest_sequence
from .gauges import Gauges
from .generation import Generation
from .handover import Ticket, TicketDesk, generation_params, issue_ticket
from .kv_events import RankEvents
from .polling import poll, stop
from .translate import (
    ChunkMaker,
    failure_of,
    is_unfinished,
    priority_of,
    refusal_of,
    sampling_arguments,
)

_log = logging.getLogger(__name__)

DEFAULT_TOKENS_PER_BLOCK = 32


class TensorRTEngine(Engine, PublishesKVEvents, PublishesMetrics):
    """One model on TensorRT-LLM. ``config`` None = all defaults."""

    def __init__(self, setup: EngineSetup, config: TensorRTConfig | None = None) -> None:
        self._setup = setup
        self._config = config or TensorRTConfig()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trtllm-engine")
        self._starting: asyncio.Future[Any] | None = None
        self._api: Any = None
        self._llm: Any = None
        self._is_closed = False
        self._desk = TicketDesk()
        self._gauges = Gauges()
        self._generations: set[Generation] = set()
        self._has_generated = asyncio.Event()  # before, TensorRT-LLM has neither events nor statistics
        self._polls: list[asyncio.Task[None]] = []
        self._ranks: list[RankEvents] = []
        self._kv_events: Feed[KVEventBatch] = Feed()
        self._metrics: Feed[ForwardPassMetrics] = Feed()
        self._context_length = 0

    # -- life

    async def start(self) -> EngineFacts:
        await checkpoint()
        if self._starting is not None or self._is_closed:
            raise EngineStartError("a trtllm engine starts once; make a new one")
        self._starting = asyncio.get_running_loop().run_in_executor(self._thread, self._construct)
        llm = await asyncio.shield(self._starting)
        if self._is_closed:
            raise EngineStartError("the engine was closed while it started")
        facts = self._facts(llm)
        self._context_length = facts.context_length
        self._gauges.begin(num_blocks=facts.num_blocks or 0, dp_size=facts.dp_size)
        block_size = facts.block_size or DEFAULT_TOKENS_PER_BLOCK
        self._ranks = [RankEvents(block_size, dp_rank=rank) for rank in range(facts.dp_size)]
        self._polls = [
            asyncio.create_task(
                poll(llm.get_kv_cache_events_async, self._on_kv_event, self._has_generated),
                name="trtllm-kv-events",
            ),
            asyncio.create_task(
                poll(llm.get_stats_async, self._on_statistics, self._has_generated), name="trtllm-statistics"
            ),
        ]
        self._llm = llm
        return facts

    def _construct(self) -> Any:
        """Blocks for as long as TensorRT-LLM starts."""
        os.environ.update(self._config.environment)
        try:
            self._api = importlib.import_module("tensorrt_llm.llmapi")
        except ImportError as error:
            raise EngineStartError(
                f"TensorRT-LLM cannot be imported ({error}); try: pip install 'dynamo-sdk-trtllm[engine]', "
                "or name the environment that has it: services.X.python"
            ) from error
        try:
            return self._api.LLM(**llm_arguments(self._api, self._setup, self._config))
        except (ConfigError, EngineStartError):
            raise
        except Exception as error:
            raise EngineStartError(f"TensorRT-LLM did not start: {type(error).__name__}: {error}") from error

    def _facts(self, llm: Any) -> EngineFacts:
        args = getattr(llm, "args", None)
        context_length = (
            self._config.context_length
            or getattr(args, "max_seq_len", None)
            or longest_sequence(self._setup.model.path)
        )
        if not context_length:
            raise EngineStartError(
                "TensorRT-LLM does not say how long a context may be; set args.context_length"
            )
        has_ranks = getattr(args, "enable_attention_dp", False)
        dp_size = getattr(args, "tensor_parallel_size", 1) if has_ranks else 1
        capacity = llm.get_kv_cache_capacity() if hasattr(llm, "get_kv_cache_capacity") else None
        cache = getattr(args, "kv_cache_config", None)
        block_size = getattr(cache, "tokens_per_block", None) or DEFAULT_TOKENS_PER_BLOCK
        if capacity:
            block_size = capacity["tokensPerBlock"]
        return EngineFacts(
            context_length=context_length,
            block_size=block_size,
            num_blocks=capacity["maxNumBlocks"] * dp_size if capacity else None,
            dp_size=dp_size,
        )

    async def drain(self) -> None:
        await self._gauges.wait_idle()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            self._llm = None
            await stop(self._polls)
            for generation in self._generations:
                generation.abort()  # so that nobody waits for a token for ever
            if self._starting is not None:
                await asyncio.wait([self._starting])
                if not self._starting.cancelled() and self._starting.exception() is None:
                    llm = self._starting.result()
                    await asyncio.get_running_loop().run_in_executor(self._thread, llm.shutdown)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self._running()
        tokens = known_tokens(request, context_length=self._context_length)
        if request.lora is not None:
            raise InvalidRequest("the trtllm engine serves no LoRA adapters", param="lora")
        is_handover = is_handed_over(request, context_length=self._context_length)
        ticket: Ticket | None = None
        if request.kv_transfer is not None and not is_handover:
            ticket = self._desk.redeem(request.kv_transfer, tokens, now_s=time.time())
        generation = self._begin(request, tokens, ticket, is_handover=is_handover)
        maker = ChunkMaker(request, ticket.first_tokens if ticket is not None else ())
        self._generations.add(generation)
        self._gauges.enter(request.request_id, num_tokens=len(tokens) if ticket is None else 0)
        try:
            async with aclosing(generation.outputs()) as outputs:
                async for output in outputs:
                    if self._is_closed:
                        break
                    self._has_generated.set()
                    answer = self._ticket(output, len(tokens)) if is_handover and output.finished else None
                    chunk = maker.chunk(output, answer)
                    if chunk is not None:
                        self._gauges.saw_token(request.request_id)
                        yield chunk
                        if chunk.finish_reason is not None:
                            return
            raise EngineFailed("the engine was closed" if self._is_closed else "the request got no end")
        except DynamoError:
            raise
        except Exception as error:
            raise failure_of(error, is_fetching=generation.is_fetching) from error
        finally:
            await generation.leave()
            self._generations.discard(generation)
            self._gauges.leave(request.request_id)

    def _begin(
        self, request: GenerateRequest, tokens: list[int], ticket: Ticket | None, *, is_handover: bool
    ) -> Generation:
        """Raises what the request is refused with; then the engine has nothing of it."""
        llm, first = self._running(), ticket.first_tokens if ticket is not None else []
        num_left = num_tokens_left(request, context_length=self._context_length)
        wanted = sampling_arguments(
            request, max_tokens=1 if is_handover else num_left + len(first), num_carried=len(first)
        )
        sampling_type = self._api.SamplingParams
        self._require_has(sampling_type, wanted)
        ours = accepted(sampling_type, {"detokenize": False, "include_stop_str_in_output": True})
        asked: dict[str, object] = {}
        if is_handover:
            params_type = self._api.DisaggregatedParams
            ids = {"disagg_request_id": _disagg_request_id()}
            asked["disaggregated_params"] = params_type(
                request_type="context_only", **accepted(params_type, ids)
            )
        elif ticket is not None:
            logprob_type = importlib.import_module("tensorrt_llm.executor.result").Logprob
            asked["disaggregated_params"] = generation_params(
                ticket, self._api.DisaggregatedParams, logprob_type
            )
        if request.cache_salt is not None:
            asked["cache_salt"] = request.cache_salt
        if request.dp_rank is not None:
            scheduling_type = importlib.import_module("tensorrt_llm.scheduling_params").SchedulingParams
            asked["scheduling_params"] = scheduling_type(
                attention_dp_rank=request.dp_rank, attention_dp_relax=False
            )
        self._require_has(llm.generate_async, asked)
        if request.priority:
            asked |= accepted(llm.generate_async, {"priority": priority_of(request.priority)})
        try:
            result = llm.generate_async(
                tokens[: len(tokens) - len(first)],
                sampling_type(**wanted, **ours),
                streaming=not is_handover,
                **asked,
            )
        except Exception as error:
            raise refusal_of(error) from error
        timeout_s = None if ticket is None else self._config.kv_transfer_timeout_s
        return Generation(result, fetch_timeout_s=timeout_s)

    @staticmethod
    def _require_has(target: Callable[..., object], wanted: dict[str, object]) -> None:
        """What a request needs is never dropped."""
        known = known_names(target)
        for name in wanted:
            if known is not None and name not in known:
                raise InvalidRequest(f"this version of TensorRT-LLM has no {name}", param=name)

    def _ticket(self, output: Any, num_tokens: int) -> KVTransferParams | None:
        """None where the first token has ended the output."""
        completion = output.outputs[0] if output.outputs else None
        if completion is None or not is_unfinished(completion):
            return None
        params = getattr(completion, "disaggregated_params", None)
        if params is None:
            raise TransferError("TensorRT-LLM gave no ticket for the prompt's KV")
        timeout_s = self._config.kv_transfer_timeout_s
        return issue_ticket(params, num_tokens=num_tokens, timeout_s=timeout_s, now_s=time.time())

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineFailed("the engine is closed" if self._is_closed else "the engine was not started")
        return self._llm

    # -- facts

    def load(self) -> LoadSnapshot | None:
        return None if self._llm is None else self._gauges.snapshot(time.monotonic())

    def check_integrity(self) -> None:
        check = getattr(self._llm, "_check_health", None)
        if check is not None:
            assert check(), "TensorRT-LLM has failed"

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        return tuple(rank.snapshot() for rank in self._ranks)

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics.subscribe(listener)

    def _on_kv_event(self, event: Any) -> None:
        rank = event.get("attention_dp_rank") or 0
        if not 0 <= rank < len(self._ranks):
            raise ValueError(f"an event of rank {rank}, there are {len(self._ranks)}")
        for batch in self._ranks[rank].receive(event):
            self._kv_events.publish(batch)

    def _on_statistics(self, row: Any) -> None:
        self._metrics.publish(self._gauges.read(row, time.monotonic()))


def _disagg_request_id() -> int:
    """Unique among all workers; above the ids that TensorRT-LLM counts itself, and within 63 bits."""
    return 1 << 62 | secrets.randbits(62)
