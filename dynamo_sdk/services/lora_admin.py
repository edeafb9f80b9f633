"""LoRA adapters that come and go while a graph runs: on all workers of a model, or on none.

Over HTTP as vLLM has it, where the frontend's argument ``lora_endpoints`` allows it::

    POST /v1/load_lora_adapter    {"lora_name": "sql", "lora_path": "./adapters/sql"}
    POST /v1/unload_lora_adapter  {"lora_name": "sql"}
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

import msgspec

from dynamo_sdk.errors import DynamoError, InvalidRequest, ModelNotFound, Unavailable
from dynamo_sdk.types import LoraSpec, Role, WorkerRecord

from .openai.app import OpenAIApp
from .openai.decoding import decode_body
from .openai.exchange import Exchange
from .openai.openapi import Operation
from .openai.routes import Received
from .pools import Pools

LOAD_TIMEOUT_S = 300.0
UNLOAD_TIMEOUT_S = 1800.0  # requests that use it end first
NEWS_TIMEOUT_S = 10.0


class LoadLoraRequest(msgspec.Struct, kw_only=True):
    """``model``: the one that the adapter is for; needed where several are served."""

    lora_name: str
    lora_path: str
    model: str | None = None


class UnloadLoraRequest(msgspec.Struct, kw_only=True):
    lora_name: str


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoints answer."""

    id: str
    parent: str
    status: str
    num_workers: int


class LoraAdmin:
    """``models``: those of the frontend."""

    def __init__(self, pools: Pools, models: Collection[str]) -> None:
        self._pools = pools
        self._models = models

    async def load(self, lora: LoraSpec, model: str | None = None) -> Changed:
        """Load it on each worker of ``model``; where one refuses, take it from the others again. Raises what
        the first one raised, ``ModelNotFound`` for the model, ``Unavailable`` where it has no worker."""
        base = self._base(model)
        workers = self._workers(base)
        if not workers:
            raise Unavailable(f"model {base!r} has no ready worker now; try again")
        had_it = {worker.worker_id for worker in workers if _serves(worker, lora.name)}
        answers = await asyncio.gather(
            *(self._call(worker, "load_lora", lora, LOAD_TIMEOUT_S) for worker in workers),
            return_exceptions=True,
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors:
            await self._take_back(
                lora.name,
                [
                    worker
                    for worker, answer in zip(workers, answers, strict=True)
                    if answer is None and worker.worker_id not in had_it
                ],
            )
            raise errors[0]
        await self._pools.wait_for_worker(
            lambda: all(_serves(worker, lora.name) for worker in self._workers(base)), NEWS_TIMEOUT_S
        )
        return Changed(id=lora.name, parent=base, status="loaded", num_workers=len(workers))

    async def unload(self, name: str) -> Changed:
        """Return when no worker has it any more; requests that use it end first. Raises ``ModelNotFound``,
        ``DeadlineExceeded`` where they take too long: new ones are refused all the same."""
        workers = [worker for worker in self._pools.all_workers() if _serves(worker, name)]
        if not workers:
            raise ModelNotFound(f"no worker has an adapter {name!r}", param="lora_name")
        base = next(model.parent for model in workers[0].models if model.name == name)
        for are_decode in (False, True):  # what is being prefilled still has to be decoded
            answers = await asyncio.gather(
                *(
                    self._call(worker, "unload_lora", name, UNLOAD_TIMEOUT_S)
                    for worker in workers
                    if (worker.role is Role.DECODE) is are_decode
                ),
                return_exceptions=True,
            )
            for answer in answers:
                if isinstance(answer, BaseException) and not isinstance(answer, ModelNotFound):
                    raise answer
        return Changed(id=name, parent=base or "", status="unloaded", num_workers=len(workers))

    # -- HTTP

    def add_to(self, app: OpenAIApp) -> None:
        """From now on whoever reaches ``app`` may load and unload."""
        load = "Load a LoRA adapter on all workers of a model"
        unload = "Take a LoRA adapter from all workers"
        app.add_operation(Operation("POST", "/v1/load_lora_adapter", load, LoadLoraRequest), self.on_load)
        app.add_operation(
            Operation("POST", "/v1/unload_lora_adapter", unload, UnloadLoraRequest), self.on_unload
        )

    async def on_load(self, exchange: Exchange, received: Received) -> None:
        request = decode_body(received.body, LoadLoraRequest)
        lora = LoraSpec(name=request.lora_name, path=request.lora_path)
        exchange.send_json(await self.load(lora, request.model))

    async def on_unload(self, exchange: Exchange, received: Received) -> None:
        exchange.send_json(await self.unload(decode_body(received.body, UnloadLoraRequest).lora_name))

    # -- inside

    def _base(self, model: str | None) -> str:
        names = ", ".join(self._models)
        if model is None and len(self._models) != 1:
            raise InvalidRequest(f"model is missing; several are served: {names}", param="model")
        base = next(iter(self._models)) if model is None else model
        if base not in self._models:
            raise ModelNotFound(f"no model {base!r} (models: {names})", param="model")
        return base

    def _workers(self, model: str) -> list[WorkerRecord]:
        """Those of all roles: each leg of a request needs the adapter."""
        return [worker for worker in self._pools.all_workers() if worker.is_ready and _serves(worker, model)]

    async def _call(
        self, worker: WorkerRecord, endpoint: str, argument: LoraSpec | str, timeout_s: float
    ) -> None:
        client = self._pools.client_of(worker)
        await client.call(worker.worker_id, endpoint, argument, timeout_s=timeout_s)

    async def _take_back(self, name: str, workers: list[WorkerRecord]) -> None:
        for worker in workers:
            with contextlib.suppress(DynamoError):
                await self._call(worker, "unload_lora", name, LOAD_TIMEOUT_S)


def _serves(worker: WorkerRecord, name: str) -> bool:
    return any(model.name == name for model in worker.models)
