"""``LoraTable``: which adapters an engine has, and which of them are in use; and what tells two apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from dynamo_sdk.errors import InvalidRequest, ModelNotFound
from dynamo_sdk.types import LoraSpec

from .weights import files_digest

HandleT = TypeVar("HandleT")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(slots=True, eq=False)
class _Adapter(Generic[HandleT]):
    spec: LoraSpec
    handle: HandleT
    num_users: int = 0
    is_leaving: bool = False
    is_unused: asyncio.Event = field(default_factory=asyncio.Event)


class LoraTable(Generic[HandleT]):
    """By name; ``HandleT`` is what the engine knows an adapter by. Keeps the promises of ``AdaptsLora``; all
    methods on one event loop."""

    def __init__(self) -> None:
        self._adapters: dict[str, _Adapter[HandleT]] = {}
        self._loading: set[str] = set()

    def specs(self) -> tuple[LoraSpec, ...]:
        """Those that requests may name."""
        return tuple(adapter.spec for adapter in self._adapters.values() if not adapter.is_leaving)

    @contextmanager
    def using(self, name: str | None) -> Iterator[HandleT | None]:
        """The adapter of a request, which stays loaded until it is over; None for the model itself.
        Raises ``ModelNotFound``."""
        if name is None:
            yield None
            return
        adapter = self._adapters.get(name)
        if adapter is None or adapter.is_leaving:
            raise self._unknown(name)
        adapter.num_users += 1
        try:
            yield adapter.handle
        finally:
            adapter.num_users -= 1
            if not adapter.num_users:
                adapter.is_unused.set()

    async def load(self, lora: LoraSpec, load: Callable[[], Awaitable[HandleT]]) -> None:
        """``load`` makes the handle; what it raises is raised. Raises ``InvalidRequest`` for a name that is
        taken, or whose adapter comes or goes just now."""
        adapter = self._adapters.get(lora.name)
        if lora.name in self._loading or (adapter is not None and adapter.is_leaving):
            raise InvalidRequest(
                f"adapter {lora.name!r} is being loaded or unloaded; try again when that is done",
                param="lora",
            )
        if adapter is not None:
            if adapter.spec != lora:
                raise InvalidRequest(
                    f"adapter {lora.name!r} is loaded from {adapter.spec.path!r}; unload it first",
                    param="lora",
                )
            return
        self._loading.add(lora.name)
        try:
            self._adapters[lora.name] = _Adapter(lora, await load())
        finally:
            self._loading.discard(lora.name)

    async def unload(self, name: str, unload: Callable[[HandleT], Awaitable[None]]) -> None:
        """``unload`` is called once nobody uses the adapter. Raises ``ModelNotFound``."""
        adapter = self._adapters.get(name)
        if adapter is None:
            raise self._unknown(name)
        adapter.is_leaving = True
        while adapter.num_users:
            adapter.is_unused.clear()
            await adapter.is_unused.wait()
        if self._adapters.get(name) is adapter:  # else another call was faster
            del self._adapters[name]
            await unload(adapter.handle)

    def _unknown(self, name: str) -> ModelNotFound:
        loaded = ", ".join(spec.name for spec in self.specs()) or "none"
        return ModelNotFound(f"no adapter {name!r} (loaded: {loaded})", param="model")


def adapter_digest(folder: Path) -> str:
    """32 hex digits over config and weights, all of them."""
    return files_digest(folder / name for name in ADAPTER_FILES if (folder / name).is_file())
