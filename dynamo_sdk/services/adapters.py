"""The LoRA adapters of one worker: those of the plan, loaded at its start, and those that come later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dynamo_sdk.engines.loras import adapter_digest
from dynamo_sdk.errors import ConfigError, InvalidRequest, RequestError
from dynamo_sdk.interfaces import AdaptsLora, Engine
from dynamo_sdk.runtime.model_path import resolve_lora_path
from dynamo_sdk.runtime.service import ServiceContext
from dynamo_sdk.types import LoraSpec, ModelRecord, WorkerRecord

from .agreement import check_agreement

NEWS_TRAVEL_S = 0.5
"""Frontends may send requests for so long after a worker has withdrawn what they are for."""


class Adapters:
    """``record`` is what the worker announces without them: one model."""

    def __init__(self, engine: Engine, record: WorkerRecord, context: ServiceContext) -> None:
        self._engine = engine
        self._record = record
        (self._base,) = record.models
        self._context = context
        self._changing: set[str] = set()
        self._loaded: dict[str, ModelRecord] = {}

    def models(self) -> tuple[ModelRecord, ...]:
        """The model and its adapters, as they are announced."""
        return (self._base, *self._loaded.values())

    async def load_planned(self, loras: Iterable[LoraSpec]) -> None:
        """Before the worker is announced. Raises ``ConfigError``."""
        for lora in loras:
            try:
                await self._load(lora)
            except RequestError as error:
                raise ConfigError(f"adapter {lora.name!r} of model {self._base.name!r}: {error}") from error

    async def load(self, lora: LoraSpec) -> None:
        """``lora.path`` as in a deploy file. Raises ``InvalidRequest``, and nothing has changed."""
        with self._change(lora.name):
            try:
                self._check_name(lora.name)
                await self._load(LoraSpec(name=lora.name, path=str(resolve_lora_path(lora.path))))
            except ConfigError as error:
                raise InvalidRequest(str(error), param="lora_path") from error
            await self._context.announcement.change(models=self.models())

    async def unload(self, name: str) -> None:
        """Announce it no more, let its requests end, free its memory. Raises ``ModelNotFound``."""
        engine = self._adapting()
        with self._change(name):
            if self._loaded.pop(name, None) is not None:
                await self._context.announcement.change(models=self.models())
                await self._context.clock.sleep(NEWS_TRAVEL_S)
            await engine.unload_lora(name)

    async def _load(self, lora: LoraSpec) -> None:
        engine = self._adapting()
        digest = await asyncio.to_thread(adapter_digest, Path(lora.path))
        adapter = msgspec.structs.replace(
            self._base, name=lora.name, path=lora.path, parent=self._base.name, digest=digest
        )
        check_agreement(msgspec.structs.replace(self._record, models=(adapter,)), self._context.fleet.workers)
        await engine.load_lora(lora)
        self._loaded[lora.name] = adapter

    @contextmanager
    def _change(self, name: str) -> Iterator[None]:
        if name in self._changing:
            raise InvalidRequest(
                f"adapter {name!r} is being loaded or unloaded; try again when that is done",
                param="lora_name",
            )
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)

    def _check_name(self, name: str) -> None:
        if not name:
            raise InvalidRequest("the adapter's name is empty", param="lora_name")
        if any(name == model.spec.name for model in self._context.plan.models):
            raise InvalidRequest(f"clients mean a model by {name!r}; choose another name", param="lora_name")

    def _adapting(self) -> AdaptsLora:
        if not isinstance(self._engine, AdaptsLora):
            raise InvalidRequest(
                f"model {self._base.name!r} runs on engine {self._record.engine!r}, which serves no LoRA "
                "adapters",
                param="model",
            )
        return self._engine
