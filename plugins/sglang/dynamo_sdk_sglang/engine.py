"""``SglangEngine``: the interfaces of an engine, on top of a process that runs SGLang.

::

    worker                                        host process        SGLang's own processes
    GenerateRequest ─> translate ─> Call ─(socket)─> async_generate ─> scheduler
    GenerateChunk   <─ translate <─ Call <─(socket)─ deltas         <─  │ │
    LoadSnapshot    <─ Gauges            <─(socket)─ load           <───┤ │
    KVEventBatch    <─ ZmqEventSource    <─────────────  publisher  <───┤ │
    ForwardPassMetrics <─ Gauges         <─────────────  publisher  <───┘ │
    the other leg's SGLang               <──────────────────────  KV  <───┘
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

import anyio
from anyio.lowlevel import checkpoint

from dynamo_sdk.engines.feeds import Feed
from dynamo_sdk.engines.loras import LoraTable
from dynamo_sdk.engines.private_sockets import free_ports, make_private_folder, private_endpoints
from dynamo_sdk.engines.runnable import known_tokens, num_tokens_left
from dynamo_sdk.engines.zmq_events import ZmqEventSource
from dynamo_sdk.errors import EngineFailed, EngineStartError, InvalidRequest, TransferError
from dynamo_sdk.interfaces import (
    AdaptsLora,
    Engine,
    EngineFacts,
    EngineSetup,
    NoticesItsEnd,
    ProbesItself,
    Promise,
    PublishesKVEvents,
    PublishesMetrics,
)
from dynamo_sdk.types import (
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEventBatch,
    LoadSnapshot,
    LoraSpec,
    Role,
    SamplingParams,
    pack_tokens,
)

from .config import SglangConfig, defaults
from .gauges import Gauges
from .handover import Meeting, meet_nobody, read_meeting
from .hosted import Call, HostProcess
from .messages import Output, Start, Started
from .steps import Step, StepSource
from .tiers import kv_identity, tier_arguments
from .translate import ChunkMaker, generate_arguments

_log = logging.getLogger(__name__)

ABORT_TIMEOUT_S = 5.0
"""How long a stream that is closed early waits for SGLang to say that it has freed what it held."""
HEARTBEAT_S = 2
"""SGLang's legs miss a peer after two of these; it does not take less."""
NO_SEEDS = "SGLang ignores seeds unless enable_deterministic_inference is set"
PROBE_TOKEN = 1


class SglangEngine(Engine, AdaptsLora, NoticesItsEnd, ProbesItself, PublishesKVEvents, PublishesMetrics):
    """One model on SGLang. ``config`` None = all defaults."""

    def __init__(self, setup: EngineSetup, config: SglangConfig | None = None) -> None:
        self.setup = setup
        self.config = config or SglangConfig()
        self._is_leg = setup.connector is not None and setup.role is not Role.AGGREGATED
        self._gauges = Gauges()
        self._host = HostProcess(self._gauges.use)
        self._has_started = self._is_closed = False
        self._facts: Started | None = None
        self._folder: str | None = None
        self._kv_events: Feed[KVEventBatch] = Feed()
        self._source: ZmqEventSource | None = None
        self._metrics: Feed[ForwardPassMetrics] = Feed()
        self._steps: StepSource | None = None
        self._loras = LoraTable[None]()
        self._preloaded = set(setup.loras)

    # -- life

    async def start(self) -> EngineFacts:
        await checkpoint()
        if self._has_started or self._is_closed:
            raise EngineStartError("an sglang engine starts once; make a new one")
        self._has_started = True
        self._folder = make_private_folder("sglang")
        self._steps = StepSource(f"ipc://{self._folder}/steps", self._on_step)
        port = free_ports(self.config.handover_host)
        identity = ""
        if len(self.setup.kv_tiers) > 1:
            identity = await asyncio.to_thread(kv_identity, self.setup, self.config.written)
        facts = await self._host.start(self._first_message(port, identity), self._environment())
        num_blocks = facts.num_tokens // facts.page_size
        self._gauges.begin(num_blocks=num_blocks, block_size=facts.page_size)
        endpoints = [private_endpoints(self._folder, rank) for rank in range(facts.dp_size)]
        self._source = ZmqEventSource(endpoints, self._kv_events.publish, block_size=facts.page_size)
        self._source.start()
        self._steps.start(facts.dp_size)
        self._facts = facts
        is_met_here = self._is_leg and self.setup.role is Role.PREFILL
        return EngineFacts(
            context_length=facts.context_length,
            block_size=facts.page_size,
            num_blocks=num_blocks,
            dp_size=facts.dp_size,
            handover_address=f"{self.config.handover_host}:{port}" if is_met_here else None,
            unclaimed={} if facts.has_seeds else {Promise.SEED_BY_POSITION: NO_SEEDS},
        )

    def _first_message(self, port: int, identity: str) -> Start:
        assert self._folder is not None
        assert self._steps is not None
        ours = {
            "model_path": self.setup.model.path,
            "served_model_name": self.setup.model.name,
            "incremental_streaming_output": True,
            "host": self.config.handover_host,
            "forward_pass_metrics_ipc_name": self._steps.endpoint,
            **defaults(self.config, self.setup.loras),
        }
        if self.setup.role is not Role.DECODE:  # there SGLang keeps no prefix cache
            ours |= tier_arguments(self.setup.kv_tiers, identity)
        if self._is_leg:
            ours |= {**self.setup.connector_args, "disaggregation_bootstrap_port": port}
        published = private_endpoints(self._folder, 0)
        events = {
            "publisher": "zmq",
            "endpoint": published.publisher,
            "replay_endpoint": published.replay,
            "format": "dynamo",  # names of blocks depend on adapter and salt, too
        }
        return Start(self.config.written, ours, events)

    def _environment(self) -> dict[str, str]:
        timeout_s = str(math.ceil(self.config.handover_timeout_s))
        return {
            **os.environ,
            "SGLANG_HOST_IP": self.config.handover_host,
            "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": timeout_s,
            "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": timeout_s,
            "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": str(HEARTBEAT_S),
            "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",  # of the model, before temperature and penalties
            **self.config.environment,
        }

    async def drain(self) -> None:
        await self._gauges.wait_idle()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            if self._steps is not None:
                await self._steps.close()
            if self._source is not None:
                await self._source.close()
            await self._host.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        facts = self._running()
        tokens = known_tokens(request, context_length=facts.context_length)
        self._check(request, tokens, facts)
        meeting = self._meeting(request)
        maker = ChunkMaker(request, is_handover=self._is_leg and request.role is Role.PREFILL)
        with self._loras.using(request.lora):
            call = self._call(request, tokens, meeting)
            try:
                output = await self._first_output(call, is_leg=meeting is not None)
                while output is not None:
                    chunk = maker.chunk(output)
                    if chunk is not None:
                        self._gauges.saw_token(call.number)
                        yield chunk
                    if maker.is_over:
                        return
                    output = await call.next()
                raise EngineFailed("SGLang ended an answer before its end")
            finally:
                await self._free(call)

    async def probe(self) -> None:
        """One token; a leg of a hand-over meets nobody for it."""
        facts = self._running()
        request = GenerateRequest(
            request_id=f"probe-{time.monotonic_ns()}",
            model=self.setup.model.name,
            prompt=pack_tokens([min(PROBE_TOKEN, facts.vocab_size - 1)]),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
        )
        call = self._call(request, request.token_ids(), meet_nobody(request) if self._is_leg else None)
        maker = ChunkMaker(request, is_handover=False)
        try:
            output = await call.next()
            if output is None or maker.chunk(output) is None:
                raise EngineFailed("SGLang gave no token for a probe")
        finally:
            await self._free(call)

    def _call(self, request: GenerateRequest, tokens: list[int], meeting: Meeting | None) -> Call:
        facts = self._running()
        num_left = num_tokens_left(request, context_length=facts.context_length)
        arguments = generate_arguments(
            request,
            tokens,
            num_tokens_left=num_left,
            meeting=meeting,
            seeded_vocab_size=facts.vocab_size if facts.has_seeds else None,
        )
        call = self._host.generate(arguments)
        self._gauges.enter(call.number, num_tokens=len(tokens))
        return call

    def _check(self, request: GenerateRequest, tokens: list[int], facts: Started) -> None:
        """What SGLang does not check, and ends of. Raises ``InvalidRequest``."""
        largest = max(tokens)
        if largest >= facts.vocab_size:
            raise InvalidRequest(
                f"token {largest} is not in the vocabulary of {facts.vocab_size}", param="prompt"
            )
        if request.sampling.min_tokens and self.config.written.get("skip_tokenizer_init"):
            raise InvalidRequest("SGLang knows no min_tokens without its tokenizer", param="min_tokens")

    def _meeting(self, request: GenerateRequest) -> Meeting | None:
        """Raises ``TicketUnknown``, and ``EngineFailed`` for what this engine is not there for."""
        if not self._is_leg:
            return None
        if request.kv_transfer is not None:
            return read_meeting(request.kv_transfer)
        is_one_token = request.sampling.max_tokens - request.num_generated_tokens == 1
        if self.setup.role is Role.PREFILL and is_one_token:
            return meet_nobody(request)
        raise EngineFailed(f"SGLang in the role {self.setup.role} runs legs of hand-overs only")

    async def _first_output(self, call: Call, *, is_leg: bool) -> Output | None:
        """SGLang has times of its own for a leg whose other one does not come, which do not cover all."""
        timeout_s = self.config.handover_timeout_s if is_leg else None
        try:
            async with asyncio.timeout(timeout_s):
                return await call.next()
        except TimeoutError:
            raise TransferError(f"the other leg did not come within {timeout_s:g} s") from None

    async def _free(self, call: Call) -> None:
        """Return when SGLang holds nothing for the call any more."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(ABORT_TIMEOUT_S) as waited:
            if not call.is_over:
                self._host.abort(call)
                await call.wait_over()
        if waited.cancelled_caught:
            _log.warning("SGLang did not confirm an abort in %.0f s", ABORT_TIMEOUT_S)
        self._gauges.leave(call.number)

    def _running(self) -> Started:
        if self._facts is None or self._is_closed:
            raise EngineFailed("the engine is closed" if self._is_closed else "the engine was not started")
        return self._facts

    # -- adapters

    async def load_lora(self, lora: LoraSpec) -> None:
        self._running()
        await self._loras.load(lora, partial(self._load_lora, lora))

    async def _load_lora(self, lora: LoraSpec) -> None:
        if lora in self._preloaded:  # SGLang was started with it
            self._preloaded.discard(lora)
        else:
            await self._host.load_adapter(lora.name, lora.path)

    async def unload_lora(self, name: str) -> None:
        self._running()
        await self._loras.unload(name, lambda _: self._host.unload_adapter(name))

    def loras(self) -> tuple[LoraSpec, ...]:
        return self._loras.specs()

    # -- facts

    def load(self) -> LoadSnapshot | None:
        return None if self._facts is None else self._gauges.snapshot(time.monotonic())

    async def wait_failed(self) -> None:
        await self._host.wait_lost()
        raise EngineFailed("SGLang's process has ended")

    def check_integrity(self) -> None:
        if self._facts is not None and not self._is_closed:
            assert self._host.is_alive, "SGLang's process has ended"

    def subscribe_kv_events(self, listener: Callable[[KVEventBatch], None]) -> None:
        self._kv_events.subscribe(listener)

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        return () if self._source is None else self._source.snapshot()

    def subscribe_metrics(self, listener: Callable[[ForwardPassMetrics], None]) -> None:
        self._metrics.subscribe(listener)

    def _on_step(self, step: Step) -> None:
        self._metrics.publish(self._gauges.read(step, time.monotonic()))
