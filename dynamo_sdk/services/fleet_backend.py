"""The frontend's backend: models as the plan names them, workers as the fleet shows them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from random import Random

from dynamo_sdk.errors import DynamoError, NotFound, Unavailable
from dynamo_sdk.flow import FlowConfig
from dynamo_sdk.interfaces import KVConnector
from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.runtime.clock import Clock
from dynamo_sdk.runtime.edges import ServiceClient
from dynamo_sdk.runtime.service import ServiceContext
from dynamo_sdk.types import (
    EmbedOutput,
    EmbedRequest,
    GenerateRequest,
    ModelRecord,
    Role,
    SamplingParams,
    WorkerId,
    WorkerRecord,
    pack_tokens,
)
from dynamo_sdk.types.plan import DeploymentPlan

from .decision_writer import DecisionWriter
from .dispatch import Dispatcher, DispatchLimits, ModelRoute
from .kv_sharing import SHARED
from .lora_admin import LoraAdmin
from .openai.backend import Backend, BackendCall, ChunkSink, GenerateOptions, Health, run_to_end
from .overlap_watch import OverlapWatch
from .parity_doctor import ParityDoctor, PipelineOf
from .pools import Pools
from .shadow_meter import ShadowMeter

logger = logging.getLogger(__name__)

METRICS_TIMEOUT_S = 2.0
CANARY_DEADLINE_S = 30.0
CANARY_RETRY_S = 1.0


class FleetBackend(Backend):
    """Serves every model of the plan that has an engine service behind this frontend."""

    def __init__(self, context: ServiceContext, limits: DispatchLimits, metrics: FrontendMetrics) -> None:
        self._clock: Clock = context.clock
        self._worker_id = context.record.worker_id
        self._peers = context.peers
        clients = {client.service: client for client in context.edges.values()}
        self._records: dict[str, tuple[list[WorkerRecord], dict[str, ModelRecord]]] = {}  # of the pool asked
        self._planned = _planned_roles(context.plan, set(clients))
        self._planned_loras = {
            lora.name: model.spec.name
            for model in context.plan.models
            if model.spec.name in self._planned
            for lora in model.loras
        }
        self._routes = {
            model.spec.name: ModelRoute(
                name=model.spec.name,
                config=FlowConfig(connector=self._connector(context, model.spec.name, model.connector)),
                routers={
                    role: context.plugins.build_router(model.router.name, dict(model.router.args))
                    for role in self._planned[model.spec.name]
                },
                on_migration=partial(_count_migration, metrics, model.spec.name),
            )
            for model in context.plan.models
            if model.spec.name in self._planned
        }
        has_overlaps = any(
            router.uses_overlap for route in self._routes.values() for router in route.routers.values()
        )
        if not has_overlaps and any(
            tier.kind == SHARED for model in context.plan.models for tier in model.kv_tiers
        ):
            logger.warning(
                "kv.tiers: %r has no effect: who has what is known to routers that look at it, such as kv",
                SHARED,
            )
        self._pools = Pools(context.fleet, clients, context.clock, has_overlaps=has_overlaps)
        self._log = (
            DecisionWriter(limits.decision_log, self._worker_id, limits.decision_log_bytes, context.clock)
            if limits.decision_log is not None
            else None
        )
        self._doctor = (
            ParityDoctor(
                context.fleet,
                self._pools,
                self._pools.events,
                Dispatcher(self._pools, context.clock, DispatchLimits()),
                self._routes,
                context.clock,
                metrics,
                Random(),
            )
            if self._pools.events is not None and limits.parity_probes
            else None
        )
        self._watch = (
            OverlapWatch(
                self._pools.events,
                self._pools.book,
                context.clock,
                metrics,
                ShadowMeter(self._routes.values(), metrics),
                self._doctor.is_misled if self._doctor is not None else lambda _: False,
                self._is_chosen_by_overlap,
            )
            if self._pools.events is not None
            else None
        )
        self._dispatcher = Dispatcher(self._pools, context.clock, limits, log=self._log)
        self.loras = LoraAdmin(self._pools, self._planned)

    def _is_chosen_by_overlap(self, worker_id: WorkerId) -> bool:
        """Whether a router chooses between it and others, and looks at what they hold."""
        pools = (
            self._pools.pool(name, role)
            for name, route in self._routes.items()
            for role, router in route.routers.items()
            if router.uses_overlap
        )
        return any(worker_id in pool.by_id and len(pool.workers) > 1 for pool in pools)

    def _connector(self, context: ServiceContext, model: str, name: str | None) -> KVConnector | None:
        if Role.PREFILL not in self._planned[model] or name is None:
            return None
        return context.plugins.build_kv_connector(name)

    # -- Backend

    def models(self) -> Mapping[str, ModelRecord]:
        """Models with a worker that can finish a request, and the adapters of these, by name."""
        found: dict[str, ModelRecord] = {}
        for name, roles in self._planned.items():
            role = Role.DECODE if Role.DECODE in roles else Role.AGGREGATED
            workers = self._pools.workers(name, role)
            seen, records = self._records.get(name, (None, {}))
            if seen is not workers:
                records = _served(workers, name)
                self._records[name] = workers, records
            found |= records
        return found

    def is_planned(self, name: str) -> bool:
        """An adapter that no worker of its model has is not on its way: it was unloaded."""
        base = self._planned_loras.get(name)
        return name in self._planned or (base is not None and base not in self.models())

    def health(self) -> Health:
        ready = self.models()
        details: dict[str, str] = {}
        for name, roles in self._planned.items():
            counts = [f"{len(self._pools.workers(name, role))} {role} ready" for role in roles]
            details[name] = ", ".join(counts)
            if adapters := [other for other, model in ready.items() if model.parent == name]:
                details[name] += f"; adapters: {', '.join(adapters)}"
            if self._watch is not None:
                details[name] += f"; {self._watch.describe(name)}"
            if self._doctor is not None and (parity := self._doctor.describe(name)):
                details[name] += f"; {parity}"
            if (num := len(self._peers.replicas())) > 1:
                details[name] += f"; as {self._worker_id} has it, one of {num} frontends"
        missing = [name for name in self._planned if name not in ready]
        if missing:
            return Health(
                is_ready=False, reason=f"no worker is ready for model {', '.join(missing)}", details=details
            )
        return Health(is_ready=True, details=details)

    def generate(self, request: GenerateRequest, sink: ChunkSink, *, options: GenerateOptions) -> BackendCall:
        route = self._route(request.model)
        return self._dispatcher.start(
            request, route, self._clock.now_s() + options.deadline_s, sink, options.hints
        )

    async def embed(self, request: EmbedRequest, *, options: GenerateOptions) -> EmbedOutput:
        route = self._route(request.model)
        for role in (Role.AGGREGATED, Role.PREFILL, Role.DECODE):
            if role in route.routers and (workers := self._pools.workers(request.served_name, role)):
                worker = min(workers, key=lambda w: self._pools.candidates([w])[0].num_active_requests)
                client = self._pools.client_of(worker)
                output = await client.call(worker.worker_id, "embed", request, timeout_s=options.deadline_s)
                assert isinstance(output, EmbedOutput)
                return output
        raise Unavailable(f"no worker of model {request.served_name!r} can take the request now")

    async def other_metrics(self) -> list[bytes]:
        others = [record for record in self._peers.replicas() if record.worker_id != self._worker_id]
        asked = [(self._peers, record) for record in others]
        asked += [(self._pools.client_of(worker), worker) for worker in self._pools.all_workers()]
        texts = await asyncio.gather(*(_metrics_of(client, record) for client, record in asked))
        return [text for text in texts if text is not None]

    # -- life

    async def try_out(self) -> None:
        """Return when every model has answered with real tokens, through all of its legs."""
        if self._watch is not None:
            self._watch.start()
        for name in self._routes:
            while not await self._answers(name):
                await self._clock.sleep(CANARY_RETRY_S)

    def check_parity(self, pipeline_of: PipelineOf) -> None:
        """From now on compare what each worker reports of probes with what was predicted."""
        if self._doctor is not None:
            self._doctor.start(pipeline_of)

    async def close(self) -> None:
        if self._doctor is not None:
            await self._doctor.close()
        await self._dispatcher.close()
        if self._watch is not None:
            await self._watch.close()
        if self._log is not None:
            self._log.close()
        await self._pools.close()

    async def _answers(self, name: str) -> bool:
        """Whether a short request came through all legs of this model, as soon as all are there."""
        if not await self._pools.wait_for_worker(partial(self._has_all_roles, name), CANARY_DEADLINE_S):
            return False
        request = GenerateRequest(
            request_id=f"canary-{self._worker_id}-{name}",  # other frontends try the same workers out
            model=name,
            prompt=pack_tokens([1, 1]),
            sampling=SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
        )
        options = GenerateOptions(deadline_s=CANARY_DEADLINE_S)
        try:
            await run_to_end(partial(self.generate, request, options=options))
        except DynamoError as error:
            logger.warning("model %s does not answer yet: %s", name, error)
            return False
        return True

    def _has_all_roles(self, name: str) -> bool:
        return all(self._pools.workers(name, role) for role in self._planned[name])

    def _route(self, model: str) -> ModelRoute:
        try:
            return self._routes[model]
        except KeyError:
            raise NotFound(f"no model {model!r} (models: {', '.join(self._routes)})", param="model") from None


def _served(workers: list[WorkerRecord], name: str) -> dict[str, ModelRecord]:
    """The model ``name`` and its adapters; of several records of one name that of the shortest context."""
    records: dict[str, ModelRecord] = {}
    for worker in workers:
        for model in worker.models:
            if name not in (model.name, model.parent):
                continue
            known = records.get(model.name)
            if known is None or model.context_length < known.context_length:
                records[model.name] = model
    return records


def _planned_roles(plan: DeploymentPlan, services: set[str]) -> dict[str, tuple[Role, ...]]:
    """Model -> the roles that the services behind this frontend play for it."""
    roles: dict[str, list[Role]] = {}
    for service in plan.services:
        if service.name in services and service.model is not None and service.role is not None:
            found = roles.setdefault(service.model, [])
            if service.role not in found:
                found.append(service.role)
    return {model: tuple(found) for model, found in roles.items()}


async def _metrics_of(client: ServiceClient, replica: WorkerRecord) -> bytes | None:
    try:
        return bytes(await client.call(replica.worker_id, "metrics", timeout_s=METRICS_TIMEOUT_S))
    except DynamoError:
        return None


def _count_migration(metrics: FrontendMetrics, model: str, num_kept_tokens: int) -> None:
    metrics.model(model).count_migration(had_tokens=num_kept_tokens > 0)
