"""``StoreBackend``: what SGLang's host memory has no room for goes into a KV store of ours.

SGLang keeps pages in host memory (HiCache) and below that in a *storage backend*, which may be a class of
somebody else's: this one. Its schedulers import this module, and nobody else does. They call it from threads
of their own; the store runs on an event loop on a thread of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import logging
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import BlockOffer, CacheKey, KVStore
from dynamo_sdk.plugins import Registry

ResultT = TypeVar("ResultT")
_log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 60.0
_NO_PART_OF_KV = ("extra_config", "enable_storage_metrics")
_base: Any = importlib.import_module("sglang.srt.mem_cache.hicache_storage").HiCacheStorage


class StoreBackend(_base):  # type: ignore[misc]
    """SGLang's names of pages depend on tokens, adapter and salt; ours also on the weights, on SGLang's
    version and settings, on how a page lies in memory, and on this rank's part of it. A call that fails or
    takes too long is a miss; when it returns, nobody reads or writes its pages any more.

    Raises ``ConfigError`` for an SGLang whose names do not depend on adapter and salt.
    """

    def __init__(self, storage_config: Any, kwargs: object = None) -> None:
        utils = importlib.import_module("sglang.srt.mem_cache.utils")
        if not hasattr(utils, "storage_namespace_seed"):
            raise ConfigError(
                "this version of SGLang would mix the stored pages of adapters and cache salts; take a newer "
                "one, or no tier below ram"
            )
        self._config = storage_config
        self._uint8 = importlib.import_module("torch").uint8
        self._store: KVStore | None = None
        self._identity = b""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="kv-store", daemon=True).start()

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """SGLang's host memory, from which the size of a page is known."""
        super().register_mem_pool_host(mem_pool_host)
        page = mem_pool_host.get_dummy_flat_data_page()
        part = {name: value for name, value in vars(self._config).items() if name not in _NO_PART_OF_KV}
        facts = {
            "engine": self._config.extra_config["identity"],
            "sglang": importlib.import_module("sglang").__version__,
            "part": part,
            "page": [str(page.dtype), page.numel(), str(getattr(mem_pool_host, "layout", ""))],
        }
        self._identity = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode()).digest()
        self._store = self._run(self._open(page.numel() * page.element_size()))

    async def _open(self, page_bytes: int) -> KVStore:
        extra, registry = self._config.extra_config, Registry.discover()
        descriptor = registry.kv_stores.require(extra["kind"])
        args = {**extra["args"], "block_bytes": page_bytes}
        if descriptor.folder_arg is not None:
            rank = f"rank-{self._config.dp_rank}-{self._config.pp_rank}-{self._config.tp_rank}"
            args[descriptor.folder_arg] = str(Path(args[descriptor.folder_arg]) / rank)
        store = registry.build_kv_store(extra["kind"], args)
        await store.start()
        return store

    # -- what SGLang calls

    def get(self, key: str, target_location: Any = None, target_sizes: object = None) -> Any:
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self, keys: Sequence[str], target_locations: Sequence[Any] | None = None, target_sizes: object = None
    ) -> list[Any]:
        """The pages, each in its target or in a new one; None for each that is not there."""
        assert self._store is not None
        make = self.mem_pool_host.get_dummy_flat_data_page
        pages = [
            target if target is not None else make() for target in target_locations or [None] * len(keys)
        ]
        found = self._try(
            self._store.get_into(self._names(keys), [self._bytes_of(page) for page in pages]),
            [False] * len(keys),
        )
        return [page if is_found else None for page, is_found in zip(pages, found, strict=True)]

    def set(
        self, key: str, value: Any = None, target_location: object = None, target_sizes: object = None
    ) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self,
        keys: Sequence[str],
        values: Sequence[Any] | None = None,
        target_locations: object = None,
        target_sizes: object = None,
    ) -> bool:
        """True also for what the store does not keep: to SGLang, False is a broken backend."""
        assert self._store is not None
        pages = [value.contiguous() for value in values or ()]
        names = self._names(keys)
        offers = [
            BlockOffer(key=name, data=self._bytes_of(page), parent=parent)
            for name, page, parent in zip(names, pages, [None, *names], strict=False)
        ]
        self._try(self._store.put_many(offers), [])
        return True

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: Sequence[str], extra_info: object = None) -> int:
        """How many of the first ones are there."""
        assert self._store is not None
        return self._try(self._store.count_prefix(self._names(keys)), 0)

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            self._run(store.close())
            self._loop.call_soon_threadsafe(self._loop.stop)

    # -- inside

    def _names(self, keys: Sequence[str]) -> list[CacheKey]:
        return [
            CacheKey(hashlib.blake2b(key.encode(), digest_size=32, key=self._identity).digest())
            for key in keys
        ]

    def _bytes_of(self, page: Any) -> memoryview:
        """A page's own memory, whatever its dtype."""
        return memoryview(page.view(self._uint8).numpy()).cast("B")

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Work that took too long has ended, too, when this raises ``TimeoutError``: SGLang uses the pages
        again, and what was still read from them would be kept under their old names."""
        return asyncio.run_coroutine_threadsafe(_limited(work), self._loop).result()

    def _try(self, work: Coroutine[Any, Any, ResultT], otherwise: ResultT) -> ResultT:
        try:
            return self._run(work)
        except Exception as error:
            _log.warning("the KV store did not answer SGLang: %s: %s", type(error).__name__, error)
            return otherwise


async def _limited(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        return await work
