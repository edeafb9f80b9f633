"""The ready-made worker services: one engine behind a few endpoints.

``Worker`` serves whole requests, ``PrefillWorker`` and ``DecodeWorker`` one leg each. What engine they
run, on which model and how often, is the deploy file's business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import ClassVar

import msgspec

from dynamo_sdk.errors import ConfigError, EngineStartError, InvalidRequest
from dynamo_sdk.graph import EngineService, endpoint
from dynamo_sdk.interfaces import (
    AdaptsLora,
    Embeds,
    Engine,
    EngineFacts,
    EngineSetup,
    ExposesBlocks,
    HasKVTiers,
    ItemSource,
    KVSharing,
    NoticesItsEnd,
    OpensSources,
    ProbesItself,
    PublishesKVEvents,
)
from dynamo_sdk.metrics import WorkerMetrics
from dynamo_sdk.runtime.model_path import resolve_lora_path, resolve_model_path
from dynamo_sdk.runtime.network import parse_address
from dynamo_sdk.runtime.service import ManagedService, ServiceContext
from dynamo_sdk.runtime.sources import sourced_by
from dynamo_sdk.transfer import DIRECT
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    KVDigestBatch,
    LoadSnapshot,
    LoraSpec,
    ModelRecord,
    ModelSpec,
    Role,
    SamplingParams,
    WorkerRecord,
    pack_tokens,
)

from .adapters import Adapters
from .agreement import check_agreement
from .handover import BlockHandover
from .kv_publisher import KVPublisher
from .kv_sharing import SharedTiers, serve_tiers
from .kv_tiers import observe_tiers, tier_setups
from .leg_meter import metered_leg, observe_load, open_metered

LOAD_INTERVAL_S = 0.1
CANARY_TOKEN = 1


class Worker(EngineService, ManagedService):
    """Runs one engine. The base of the two specialised workers."""

    role: ClassVar[Role] = Role.AGGREGATED

    endpoints_while_draining = frozenset({"release"})

    _engine: Engine
    _context: ServiceContext
    _metrics: WorkerMetrics
    _adapters: Adapters
    _handover: BlockHandover | None = None
    _kv_publisher: KVPublisher | None = None
    _shared_tiers: SharedTiers | None = None
    _is_open = False

    # -- endpoints

    def _open_leg(self, request: GenerateRequest) -> ItemSource[GenerateChunk] | None:
        if self._handover is not None or not isinstance(self._engine, OpensSources):
            return None
        return open_metered(self._engine, self._metrics, request, self._context.clock)

    @endpoint
    @sourced_by(_open_leg)
    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """One leg. Ends early, with everything freed, when the caller closes the stream."""
        run = self._engine if self._handover is None else self._handover
        with metered_leg(self._metrics, request, self._context.clock) as meter:
            async with aclosing(run.generate(request)) as chunks:
                async for chunk in chunks:
                    meter.see(chunk)
                    yield chunk

    @endpoint
    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        if not isinstance(self._engine, Embeds):
            raise InvalidRequest(
                f"model {request.model!r} runs on an engine that cannot embed", param="model"
            )
        return await self._engine.embed(request)

    @endpoint
    async def release(self, request_id: str) -> None:
        """Nobody will fetch the blocks that are held for this prefill leg."""
        if self._handover is not None:
            self._handover.release(request_id)

    @endpoint
    async def loads(self) -> AsyncIterator[LoadSnapshot]:
        """The engine's load now, and whenever it has changed, at most ten times a second."""
        last: LoadSnapshot | None = None
        while True:
            load = self._engine.load()
            if load is not None and (last is None or msgspec.structs.replace(load, at_s=last.at_s) != last):
                last = load
                yield load
            await self._context.clock.sleep(LOAD_INTERVAL_S)

    @endpoint
    async def kv_events(self, seen: dict[int, int]) -> AsyncIterator[KVDigestBatch]:
        """What the engine's prefix caches hold, and every change. ``seen``: by rank the number of the last
        batch that the caller has; the stream goes on after it, or with a snapshot."""
        if self._kv_publisher is None:
            raise InvalidRequest("the engine of this worker publishes no KV events")
        async with aclosing(self._kv_publisher.follow(seen)) as batches:
            async for batch in batches:
                yield batch

    @endpoint
    async def load_lora(self, lora: LoraSpec) -> None:
        """Serve one more adapter from now on. Raises ``InvalidRequest``, and nothing has changed."""
        await self._adapters.load(lora)

    @endpoint
    async def unload_lora(self, name: str) -> None:
        """Serve it no more; the answer comes when its last request has ended. Raises ``ModelNotFound``."""
        await self._adapters.unload(name)

    @endpoint
    async def metrics(self) -> bytes:
        """This worker's series, as Prometheus text."""
        observe_load(self._metrics, self._engine.load())
        if isinstance(self._engine, HasKVTiers):
            observe_tiers(self._metrics.tiers, self._engine.kv_tier_statistics())
        if self._shared_tiers is not None:
            self._shared_tiers.observe(self._metrics.tiers)
        return self._metrics.render()

    @endpoint
    async def check_integrity(self) -> None:
        """Raises ``EngineFailed`` when the engine's books do not add up. For tests; may be slow."""
        self._engine.check_integrity()

    # -- life

    async def start(self, context: ServiceContext) -> WorkerRecord:
        self._context = context
        service = context.service
        if service.engine is None or service.model is None:
            raise ConfigError(f"service {service.name} has no engine or model in the plan")
        model = next(model for model in context.plan.models if model.spec.name == service.model)
        spec = ModelSpec(name=model.spec.name, path=str(resolve_model_path(model.spec.path)))
        connector_args: dict[str, str] = {}
        if service.connector is not None:
            connector_args = context.plugins.build_kv_connector(service.connector).engine_args(self.role)
        loras = tuple(
            LoraSpec(name=lora.name, path=str(resolve_lora_path(lora.path))) for lora in model.loras
        )
        sharing = KVSharing(address=_address_beside(context.record.address, "tiers"), secret=context.secret)
        setup = EngineSetup(
            model=spec,
            role=self.role,
            connector=service.connector,
            connector_args=connector_args,
            loras=loras,
            kv_tiers=tier_setups(
                model.kv_tiers,
                context.plugins,
                f"{service.name}-{context.record.replica}",
                context.secret,
                may_lack=context.has_served,
            ),
            kv_sharing=sharing,
        )
        self._metrics = WorkerMetrics(
            service=service.name, worker_id=context.record.worker_id, role=self.role
        )
        self._engine = context.plugins.build_engine(service.engine.name, setup, service.engine.args)
        if loras and not isinstance(self._engine, AdaptsLora):
            raise ConfigError(
                f"model {spec.name!r} has LoRA adapters, and engine {service.engine.name!r} of service "
                f"{service.name} serves none; remove loras of the model or choose another engine"
            )
        self._is_open = True
        facts = await self._engine.start()
        if isinstance(self._engine, PublishesKVEvents):
            self._kv_publisher = KVPublisher(self._engine)
        if service.connector == DIRECT:
            await self._start_handover(context)
        self._shared_tiers = await serve_tiers(self._engine, model.kv_tiers, sharing.address, sharing.secret)
        await self._try_out(spec.name)
        record = self._announce(context.record, spec, facts)
        self._adapters = Adapters(self._engine, record, context)
        await self._adapters.load_planned(loras)
        return msgspec.structs.replace(record, models=self._adapters.models())

    async def wait_failed(self) -> None:
        if isinstance(self._engine, NoticesItsEnd):
            await self._engine.wait_failed()
        await super().wait_failed()

    async def drain(self) -> None:
        await self._engine.drain()
        if self._handover is not None:
            await self._handover.drain()

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._handover is not None:
            await self._handover.close()
        if self._shared_tiers is not None:
            await self._shared_tiers.close()
        await self._engine.close()

    async def _start_handover(self, context: ServiceContext) -> None:
        if not isinstance(self._engine, ExposesBlocks):
            raise EngineStartError(
                f"engine of {context.service.name} declares connector {DIRECT!r} but exposes no blocks"
            )
        self._handover = BlockHandover(
            self._engine,
            self._engine,
            context.clock,
            secret=context.secret,
            settings=context.service.transfer,
        )
        await self._handover.start(_address_beside(context.record.address, "kv"))

    async def _try_out(self, model: str) -> None:
        """One token through the real engine: ready means that it has answered once."""
        if isinstance(self._engine, ProbesItself):
            await self._engine.probe()
            return
        request = GenerateRequest(
            request_id=f"canary-{self._context.record.worker_id}",
            model=model,
            prompt=pack_tokens([CANARY_TOKEN]),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
        )
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                    return
        raise EngineStartError(
            f"the engine of {self._context.service.name} gave no end to a one-token request"
        )

    def _announce(self, record: WorkerRecord, spec: ModelSpec, facts: EngineFacts) -> WorkerRecord:
        service = self._context.service
        model = ModelRecord(
            name=spec.name,
            path=spec.path,
            context_length=facts.context_length,
            block_size=facts.block_size,
            digest=facts.model_digest,
        )
        announced = msgspec.structs.replace(
            record,
            role=self.role,
            engine=service.engine.name if service.engine is not None else None,
            connector=service.connector,
            handover_address=facts.handover_address,
            models=(model,),
            dp_size=facts.dp_size,
            num_blocks=facts.num_blocks,
            publishes_kv_events=self._kv_publisher is not None,
            kv_address=None if self._shared_tiers is None else self._shared_tiers.address,
        )
        check_agreement(announced, self._context.fleet.workers)
        return announced


def _address_beside(address: str, name: str) -> str:
    """Where blocks are fetched from, beside where calls arrive."""
    if address.startswith("unix:"):
        return f"{address}.{name}"
    if address.startswith("tcp:"):
        return f"tcp:{parse_address(address)[1]}:0"
    return "tcp:127.0.0.1:0"  # one process, in-memory calls: blocks still take a real way


class PrefillWorker(Worker):
    """Reads prompts; hands their KV over after the first token."""

    role = Role.PREFILL


class DecodeWorker(Worker):
    """Continues what a prefill worker began; runs whole requests where there is none."""

    role = Role.DECODE
