"""Which models clients can name, and the pipeline of each, loaded once and off the loop."""

from __future__ import annotations

import asyncio

from dynamo_sdk.errors import ModelNotFound, Unavailable, UserError
from dynamo_sdk.preprocess import ModelPipeline
from dynamo_sdk.types import ModelRecord

from .backend import Backend

_MAX_NAMED = 20


class ModelDirectory:
    """Pipelines are kept by record, so a model announced anew with other facts is loaded anew. Adapters have
    the tokenizer and the template of their model: its pipeline."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loading: dict[ModelRecord, asyncio.Task[ModelPipeline]] = {}

    def record(self, name: str) -> ModelRecord:
        """Raises ``ModelNotFound``, naming the models there are, or ``Unavailable`` when there are none."""
        models = self._backend.models()
        record = models.get(name)
        if record is not None:
            return record
        if self._backend.is_planned(name):
            raise Unavailable(
                f"model {name!r} has no ready worker now; ask /health for the reason and try again"
            )
        if not models:
            raise Unavailable("no model is ready yet; ask /health for the reason and try again")
        known = sorted(models)
        more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
        shown = name if len(name) <= 100 else name[:99] + "…"
        raise ModelNotFound(
            f"model {shown!r} does not exist; there is {', '.join(map(repr, known[:_MAX_NAMED]))}{more}",
            param="model",
        )

    async def pipeline(self, record: ModelRecord) -> ModelPipeline:
        """Raises ``Unavailable`` when the model's folder cannot be used."""
        if record.parent is not None:
            record = self._backend.models().get(record.parent, record)
        task = self._loading.get(record)
        if task is None:
            self._forget_gone()
            task = asyncio.create_task(asyncio.to_thread(ModelPipeline.load, record))
            self._loading[record] = task
        try:
            return await asyncio.shield(task)
        except UserError as error:
            self._loading.pop(record, None)
            raise Unavailable(f"model {record.name!r} cannot be served: {error}") from error

    def _forget_gone(self) -> None:
        served = set(self._backend.models().values())
        for record in [record for record in self._loading if record not in served]:
            del self._loading[record]
