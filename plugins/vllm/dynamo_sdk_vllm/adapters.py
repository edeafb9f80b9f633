"""LoRA adapters in vLLM: what it must know of them before it starts, and what it calls them."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from dynamo_sdk.engines.loras import LoraTable
from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.types import BlocksStored, KVEventBatch, LoraSpec

RANKS = (8, 16, 32, 64, 128, 256)
"""What ``max_lora_rank`` may be, in all versions."""


class _AdapterConfig(msgspec.Struct):
    """The part of ``adapter_config.json`` that we read."""

    r: int = RANKS[0]


def num_slots_to_spare() -> int:
    """How many of ``max_loras`` must stay empty. On the CPU, vLLM applies the last slot to rows without an
    adapter (its index for "none", -1, is that of the last one in PyTorch): wrong tokens, without an error."""
    try:
        return int(importlib.import_module("vllm.platforms").current_platform.is_cpu())
    except (ImportError, AttributeError):
        return 0


def lora_arguments(loras: Iterable[LoraSpec]) -> dict[str, object]:
    """Arguments of vLLM with which all of these can be in one batch."""
    ranks = [_rank_of(lora) for lora in loras]
    needed = max(ranks)
    return {
        "enable_lora": True,
        "max_loras": len(ranks) + num_slots_to_spare(),
        "max_lora_rank": next((rank for rank in RANKS if rank >= needed), needed),
    }


def _rank_of(lora: LoraSpec) -> int:
    """vLLM says what is wrong with an adapter's files when it loads them."""
    try:
        text = Path(lora.path, "adapter_config.json").read_bytes()
        return msgspec.json.decode(text, type=_AdapterConfig).r
    except (OSError, msgspec.MsgspecError):
        return RANKS[0]


class Adapters:
    """Handles are vLLM's ``LoRARequest``. vLLM finds cached KV by an adapter's name, so each load has a name
    of its own there: ``NAME@NUMBER``."""

    def __init__(self) -> None:
        self._table = LoraTable[Any]()
        self._numbers = itertools.count(1)
        self._names: dict[str, str] = {}  # vLLM's -> ours, of those that are loaded

    def specs(self) -> tuple[LoraSpec, ...]:
        return self._table.specs()

    def using(self, name: str | None) -> AbstractContextManager[Any]:
        """The ``LoRARequest`` of a request, or None. Raises ``ModelNotFound``."""
        return self._table.using(name)

    async def load(self, llm: Any, lora: LoraSpec) -> None:
        async def add() -> Any:
            self._check_room(llm)
            number = next(self._numbers)
            request = importlib.import_module("vllm.lora.request").LoRARequest
            adapter = request(lora_name=f"{lora.name}@{number}", lora_int_id=number, lora_path=lora.path)
            try:
                await llm.add_lora(adapter)
            except Exception as error:
                raise InvalidRequest(
                    f"vLLM cannot load adapter {lora.name!r} from {lora.path!r}: {error}", param="lora"
                ) from error
            self._names[adapter.lora_name] = lora.name
            return adapter

        await self._table.load(lora, add)

    async def unload(self, llm: Any, name: str) -> None:
        async def remove(adapter: Any) -> None:
            self._names.pop(adapter.lora_name, None)
            await llm.remove_lora(adapter.lora_int_id)

        await self._table.unload(name, remove)

    def _check_room(self, llm: Any) -> None:
        config = getattr(llm.vllm_config, "lora_config", None)
        if config is None:
            raise InvalidRequest(
                "vLLM was started without LoRA; name an adapter in the deploy file, or set "
                "args: {enable_lora: true}",
                param="lora",
            )
        num_spare = num_slots_to_spare()
        if num_spare and len(self._names) + num_spare >= config.max_loras:
            raise InvalidRequest(
                f"vLLM has {config.max_loras} slots (max_loras) for adapters, and on the CPU {num_spare} of "
                "them stays empty; unload one, or set args: {max_loras: ...}",
                param="lora",
            )

    def renamed(self, batch: KVEventBatch) -> KVEventBatch:
        """With our names. Blocks of adapters that are gone keep vLLM's: nobody looks for them."""
        if not any(isinstance(event, BlocksStored) and event.lora in self._names for event in batch.events):
            return batch
        events = tuple(
            msgspec.structs.replace(event, lora=self._names.get(event.lora, event.lora))
            if isinstance(event, BlocksStored) and event.lora is not None
            else event
            for event in batch.events
        )
        return msgspec.structs.replace(batch, events=events)
