"""``VllmEngine``: the interfaces of an engine, on top of vLLM's ``AsyncLLM``.

::

    GenerateRequest ─> translate ─> AsyncLLM.generate ─(socket)─> EngineCore, vLLM's own process
    GenerateChunk   <─ translate <─ deltas            <──────────  │   │
    LoadSnapshot    <─ Gauges    <─ statistics        <────────────┘   │
    KVEventBatch    <─ ZmqEventSource <─ publisher    <────────────────┘
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.engines.foreign_arguments import accepted
from dynamo_sdk.engines.private_sockets import free_ports, make_private_folder, private_endpoints
from dynamo_sdk.engines.runnable import is_handed_over, known_tokens
from dynamo_sdk.engines.zmq_events import ZmqEventSource
from dynamo_sdk.errors import DynamoError, EngineFailed, EngineStartError, TransferError
from dynamo_sdk.interfaces import (
    AdaptsLora,
    Engine,
    EngineFacts,
    EngineSetup,
    HasKVTiers,
    KVTiersStatistics,
    Promise,
    PublishesKVEvents,
    PublishesMetrics,
    ServedTiers,
)
from dynamo_sdk.types import (
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
    LoraSpec,
)

from .adapters import Adapters, lora_arguments
from .config import VllmConfig, engine_arguments, num_ranks
from .gauges import Gauges
from .handover import ASK_FOR_TICKET, Params, TicketDesk, issue_ticket
from .tiers.config import CONNECTOR
from .tiers.sharing import answered
from .tiers.statistics import Said, merged, sharing_of, total
from .transfer import kv_transfer
from .translate import ChunkMaker, error_of, sampling_arguments

_log = logging.getLogger(__name__)

ABORT_TIMEOUT_S = 5.0
"""How long a stream that is closed early waits for vLLM to say that it has freed what it held."""


class VllmEngine(Engine, AdaptsLora, PublishesKVEvents, PublishesMetrics, HasKVTiers):
    """One model on vLLM. ``config`` None = all defaults."""

    def __init__(self, setup: EngineSetup, config: VllmConfig | None = None) -> None:
        self._setup = setup
        self._config = config or VllmConfig()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm-engine")
        self._starting: asyncio.Future[Any] | None = None
        self._llm: Any = None
        self._folder: str | None = None
        self._is_closed = False
        self._desk = TicketDesk()
        self._gauges = Gauges()
        self._kv_events: Feed[KVEventBatch] = Feed()
        self._source: ZmqEventSource | None = None
        self._metrics: Feed[ForwardPassMetrics] = Feed()
        self._loras = Adapters()
        self._context_length = 0
        self._tiers_said: dict[int, Said] = {}

    # -- life

    async def start(self) -> EngineFacts:
        await checkpoint()
        if self._starting is not None or self._is_closed:
            raise EngineStartError("a vllm engine starts once; make a new one")
        self._folder = make_private_folder("vllm")
        self._starting = asyncio.get_running_loop().run_in_executor(self._thread, self._construct)
        llm = await asyncio.shield(self._starting)
        if self._is_closed:
            raise EngineStartError("the engine was closed while it started")
        config = llm.vllm_config
        self._context_length = config.model_config.max_model_len
        block_size, dp_size = config.cache_config.block_size, config.parallel_config.data_parallel_size
        num_blocks = config.cache_config.num_gpu_blocks or 0
        self._gauges.begin(num_blocks=num_blocks, dp_size=dp_size)
        endpoints = [private_endpoints(self._folder, rank) for rank in range(dp_size)]
        self._source = ZmqEventSource(endpoints, self._on_kv_events, block_size=block_size)
        self._source.start()
        self._llm = llm
        return EngineFacts(
            context_length=self._context_length,
            block_size=block_size,
            num_blocks=num_blocks or None,
            dp_size=dp_size,
            unclaimed={Promise.SEED_BY_POSITION: "vLLM draws a request's chances from one stream, in order"},
        )

    def _construct(self) -> Any:
        """Blocks for as long as vLLM starts."""
        assert self._folder is not None
        os.environ.update(self._config.environment)
        if self._setup.connector is not None:
            os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = self._config.side_channel_host
            port = free_ports(self._config.side_channel_host, num_ranks(self._config))
            os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(port)
        try:
            config = importlib.import_module("vllm.config")
            engine_args = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
            async_llm = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
            loggers = importlib.import_module("vllm.v1.metrics.loggers")
        except ImportError as error:
            raise EngineStartError(
                f"vLLM cannot be imported ({error}); try: pip install 'dynamo-sdk-vllm[engine]', or name "
                "the environment that has it: services.X.python"
            ) from error
        events = private_endpoints(self._folder, 0)
        ours: dict[str, object] = {
            "kv_events_config": config.KVEventsConfig(
                enable_kv_cache_events=True,
                publisher="zmq",
                endpoint=events.publisher,
                replay_endpoint=events.replay,
            ),
        }
        if self._setup.loras:
            ours |= lora_arguments(self._setup.loras)
        transfer = kv_transfer(self._setup, self._config, self._folder)
        if transfer is not None:
            ours["kv_transfer_config"] = config.KVTransferConfig(**transfer)
        arguments = engine_arguments(engine_args, self._setup, self._config, **ours)
        wanted = {"stat_loggers": [_reader_of_statistics(loggers.StatLoggerBase, self._on_statistics)]}
        try:
            return async_llm.from_engine_args(
                engine_args(**arguments), **accepted(async_llm.from_engine_args, wanted)
            )
        except Exception as error:
            raise EngineStartError(f"vLLM did not start: {type(error).__name__}: {error}") from error

    async def drain(self) -> None:
        await self._gauges.wait_idle()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            if self._source is not None:
                await self._source.close()
            self._llm = None
            if self._starting is not None:
                await asyncio.wait([self._starting])
                if not self._starting.cancelled() and self._starting.exception() is None:
                    await self._stop(self._starting.result())
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _stop(self, llm: Any) -> None:
        try:
            await llm.abort(self._gauges.names)  # so that nobody waits for a token for ever
        except Exception as error:
            _log.info("vLLM took no abort while it closed: %s", error)
        reader = getattr(llm, "output_handler", None)
        if reader is not None:
            reader.cancel()  # before what it reads from goes away, which it would report as a failure
        await asyncio.get_running_loop().run_in_executor(self._thread, llm.shutdown)

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        llm = self._running()
        with self._loras.using(request.lora) as lora:
            tokens = known_tokens(request, context_length=self._context_length)
            is_handover = is_handed_over(request, context_length=self._context_length)
            if is_handover:
                kv_transfer: Params | None = ASK_FOR_TICKET
            elif request.kv_transfer is not None:
                kv_transfer = self._desk.redeem(
                    request.kv_transfer, num_tokens=len(tokens), now_s=time.time()
                )
            else:
                kv_transfer = None
            maker = ChunkMaker(request)
            self._gauges.enter(request.request_id, num_tokens=len(tokens))
            has_ended = False
            try:
                sampling = sampling_arguments(request, is_handover=is_handover, kv_transfer=kv_transfer)
                async with aclosing(self._outputs(llm, request, tokens, sampling, lora)) as outputs:
                    async for output in outputs:
                        has_ended = output.finished
                        is_ticket_due = (
                            is_handover and has_ended and output.outputs[0].finish_reason == "length"
                        )
                        ticket = self._ticket(output) if is_ticket_due else None
                        chunk = maker.chunk(output, ticket)
                        if chunk is not None:
                            self._gauges.saw_token(request.request_id)
                            yield chunk
                        await checkpoint_if_cancelled()  # vLLM gives what has come already without a turn
            except Exception as error:
                has_ended = True
                raise error if isinstance(error, DynamoError) else error_of(error) from error
            finally:
                if not has_ended:
                    await self._wait_freed(llm)
                self._gauges.leave(request.request_id)

    def _outputs(
        self, llm: Any, request: GenerateRequest, tokens: list[int], sampling: dict[str, object], lora: object
    ) -> AsyncGenerator[Any, None]:
        vllm = importlib.import_module("vllm.sampling_params")
        sampling["output_kind"] = vllm.RequestOutputKind.DELTA
        given: dict[str, object] = {"lora_request": lora, "data_parallel_rank": request.dp_rank}
        if llm.vllm_config.scheduler_config.policy == "priority":
            given["priority"] = request.priority
        outputs: AsyncGenerator[Any, None] = llm.generate(
            _prompt(tokens, request.cache_salt),
            vllm.SamplingParams(**accepted(vllm.SamplingParams, sampling)),
            request.request_id,
            **accepted(llm.generate, given),
        )
        return outputs

    def _ticket(self, output: Any) -> Any:
        params = getattr(output, "kv_transfer_params", None)
        if not params:
            raise TransferError("vLLM gave no ticket for the prompt's KV; is its KV connector NixlConnector?")
        self._gauges.hand_over(self._config.lease_s)
        return issue_ticket(params, lease_s=self._config.lease_s, now_s=time.time())

    async def _wait_freed(self, llm: Any) -> None:
        """vLLM handles what it is told in order: an answer to anything means that the abort is through."""
        if self._is_closed:
            return
        with anyio.CancelScope(shield=True), anyio.move_on_after(ABORT_TIMEOUT_S):
            try:
                await llm.is_sleeping()
            except Exception as error:
                _log.info("vLLM did not confirm an abort: %s", error)

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineFailed("the engine is closed" if self._is_closed else "the engine was not started")
        return self._llm

    # -- adapters

    async def load_lora(self, lora: LoraSpec) -> None:
        await self._loras.load(self._running(), lora)

    async def unload_lora(self, name: str) -> None:
        await self._loras.unload(self._running(), name)

    def loras(self) -> tuple[LoraSpec, ...]:
        return self._loras.specs()

    # -- facts

    def load(self) -> LoadSnapshot | None:
        return None if self._llm is None else self._gauges.snapshot(time.monotonic())

    def check_integrity(self) -> None:
        if self._llm is not None:
            assert not self._llm.errored, "vLLM has failed"

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        batches = () if self._source is None else self._source.snapshot()
        return tuple(self._loras.renamed(batch) for batch in batches)

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics.subscribe(listener)

    def _on_kv_events(self, batch: KVEventBatch) -> None:
        self._kv_events.publish(self._loras.renamed(batch))

    def kv_tier_statistics(self) -> KVTiersStatistics:
        """As vLLM said with its last step."""
        return total(self._tiers_said.values())

    def readable_tiers(self) -> ServedTiers | None:
        address = None if self._folder is None else answered(Path(self._folder))
        if address is None:
            return None
        return ServedTiers(address=address, statistics=lambda: sharing_of(self._tiers_said.values()))

    def _on_statistics(self, rank: int, scheduler: Any, iteration: Any) -> None:
        said = getattr(scheduler, "kv_connector_stats", None)
        if said and self._setup.kv_tiers:
            self._tiers_said[rank] = merged(self._tiers_said.get(rank, {}), said.get(CONNECTOR, said))
        step = self._gauges.read(rank, scheduler, iteration, time.monotonic())
        if step is not None:
            self._metrics.publish(step)


def _prompt(tokens: list[int], cache_salt: str | None) -> object:
    """Rendered, where the version has a word for it; then vLLM does no work on it before the engine."""
    try:
        return importlib.import_module("vllm.inputs.engine").tokens_input(tokens, cache_salt=cache_salt)
    except (ImportError, AttributeError):
        prompt: dict[str, object] = {"prompt_token_ids": tokens}
        return prompt if cache_salt is None else {**prompt, "cache_salt": cache_salt}


def _reader_of_statistics(base: type, listener: Callable[[int, Any, Any], None]) -> type:
    """vLLM wants a class of its own kind; what its ``record`` is given grows with each version."""

    class Reader(base):  # type: ignore[misc]
        def __init__(self, vllm_config: object, engine_index: int = 0) -> None:
            self._engine_index = engine_index

        def record(
            self,
            scheduler_stats: object = None,
            iteration_stats: object = None,
            *_: object,
            engine_idx: int | None = None,
            **__: object,
        ) -> None:
            rank = self._engine_index if engine_idx is None else engine_idx
            listener(rank, scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return Reader
