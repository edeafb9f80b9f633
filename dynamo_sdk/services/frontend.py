"""The ready-made frontend: HTTP above, request flows below, nothing in between.

A subclass says which services it drives::

    @service
    class Api(Frontend):
        prefill = depends(Prefill)
        decode = depends(Decode)

Legs are found by the role of the service behind each edge, not by the attribute's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import anyio
import msgspec

from dynamo_sdk.errors import ConfigError, EngineFailed, Unavailable
from dynamo_sdk.flow import AdmissionLimits
from dynamo_sdk.graph import FrontendService, endpoint
from dynamo_sdk.metrics import FrontendMetrics
from dynamo_sdk.runtime.service import ManagedService, ServiceContext
from dynamo_sdk.types import WorkerRecord

from .dispatch import DispatchLimits
from .fleet_backend import FleetBackend
from .openai import HttpLimits, OpenAIApp, serve

logger = logging.getLogger(__name__)


class Frontend(FrontendService, ManagedService):
    """Serves the OpenAI API. The arguments are what ``services.NAME.args`` may set."""

    _app: OpenAIApp
    _metrics: FrontendMetrics
    _backend: FleetBackend | None = None
    _serving: asyncio.Task[None] | None = None

    def __init__(
        self,
        *,
        max_body_bytes: int = HttpLimits().max_body_bytes,
        request_timeout_s: float = HttpLimits().deadline_s,
        stall_timeout_s: float = DispatchLimits().stall_timeout_s,
        wait_for_worker_s: float = DispatchLimits().wait_for_worker_s,
        max_prefill_tokens: int | None = None,
        max_waiting: int = AdmissionLimits().max_waiting,
        max_waiting_per_tenant: int = AdmissionLimits().max_waiting_per_tenant,
        tenant_quantum: int = AdmissionLimits().default_quantum,
        tenant_quanta: dict[str, int] | None = None,
        parity_probes: bool = DispatchLimits().parity_probes,
        lora_endpoints: bool = False,
        decision_log: str | None = None,
        decision_log_bytes: int = DispatchLimits().decision_log_bytes,
    ) -> None:
        at_least_1 = {
            "max_prefill_tokens": max_prefill_tokens,
            "max_waiting": max_waiting,
            "max_waiting_per_tenant": max_waiting_per_tenant,
            "tenant_quantum": tenant_quantum,
        }
        for name, value in at_least_1.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; allowed is 1 or more")
        self._has_lora_endpoints = lora_endpoints
        self._http_limits = HttpLimits(max_body_bytes=max_body_bytes, deadline_s=request_timeout_s)
        self._dispatch_limits = DispatchLimits(
            stall_timeout_s=stall_timeout_s,
            wait_for_worker_s=wait_for_worker_s,
            max_prefill_tokens=max_prefill_tokens,
            admission=AdmissionLimits(
                default_quantum=tenant_quantum,
                quanta=tenant_quanta or {},
                max_waiting=max_waiting,
                max_waiting_per_tenant=max_waiting_per_tenant,
            ),
            parity_probes=parity_probes,
            decision_log=decision_log,
            decision_log_bytes=decision_log_bytes,
        )

    @endpoint
    async def metrics(self) -> bytes:
        """This frontend's series, as Prometheus text; other frontends ask for them."""
        return self._metrics.render()

    async def start(self, context: ServiceContext) -> WorkerRecord:
        if context.http_fd is None:
            raise ConfigError(f"{context.service.name} is a frontend and got no listening socket")
        listener = socket.socket(fileno=context.http_fd)
        metrics = self._metrics = FrontendMetrics(worker_id=context.record.worker_id)
        self._backend = FleetBackend(context, self._dispatch_limits, metrics)
        limits = msgspec.structs.replace(self._http_limits, drain_timeout_s=context.drain_timeout_s)
        app = self._app = OpenAIApp(self._backend, metrics=metrics, limits=limits)
        if self._has_lora_endpoints:
            self._backend.loras.add_to(app)
        self._shutdown = asyncio.Event()
        self._serving = asyncio.get_running_loop().create_task(serve(app, listener, shutdown=self._shutdown))
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return msgspec.structs.replace(context.record, url=f"http://{shown}:{port}")

    async def check_edges(self) -> None:
        assert self._backend is not None
        await self._backend.try_out()
        for record in list(self._backend.models().values()):
            try:  # now, not while the first client waits
                await self._app.directory.pipeline(record)
            except Unavailable as error:
                logger.warning("%s", error)
        self._backend.check_parity(self._app.directory.pipeline)

    async def wait_failed(self) -> None:
        assert self._serving is not None
        await asyncio.wait([self._serving])
        if not self._shutdown.is_set():
            error = None if self._serving.cancelled() else self._serving.exception()
            raise EngineFailed(f"the HTTP server has ended: {error!r}")
        await anyio.sleep_forever()

    async def drain(self) -> None:
        if self._serving is not None:
            self._shutdown.set()
            await asyncio.wait([self._serving])

    async def close(self) -> None:
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()
