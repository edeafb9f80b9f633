"""``StoreBackend``: what SGLang's host memory has no room for goes into a KV store of ours.

SGLang keeps pages in host memory (HiCache) and below that in a *storage backend*, which may be a class of
somebody else's: this one. Its schedulers import this module, and nobody else does. They call it from threads
of their own; the store runs on an event loop on a thread of ours.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import BlockOffer, CacheKey, KVStore, KVStoreFailure, KVStoreFailureKind
from dynamo_sdk.plugins import Registry
from dynamo_sdk.stores.failures import FailureLog

from .store_thread import StoreThread

ResultT = TypeVar("ResultT")
_log = logging.getLogger(__name__)

_NO_PART_OF_KV = ("extra_config", "enable_storage_metrics")
_base: Any = importlib.import_module("sglang.srt.mem_cache.hicache_storage").HiCacheStorage


class StoreBackend(_base):  # type: ignore[misc]
    """SGLang's names of pages depend on tokens, adapter and salt; ours also on the weights, on SGLang's
    version and settings, on how a page lies in memory, and on this rank's part of it. A call that fails or
    takes too long is a miss, also where the store never returns. SGLang uses the memory of its pages again:
    the store is given memory that a call can keep.

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
        self._thread = StoreThread()
        self._failures = FailureLog(_log, "SGLang's storage")

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
        self._store = self._thread.run(self._open(page.numel() * page.element_size()))

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
        targets = target_locations or [None] * len(keys)
        pages = [target if _is_whole(target) else make() for target in targets]
        found = self._try(
            self._store.get_into(self._names(keys), [self._bytes_of(page) for page in pages]),
            [False] * len(keys),
            len(keys),
        )
        for target, page, is_found in zip(targets, pages, found, strict=True):
            if is_found and target is not None and target is not page:
                target.copy_(page)
        return [
            (page if target is None else target) if is_found else None
            for target, page, is_found in zip(targets, pages, found, strict=True)
        ]

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
        whole = [value.contiguous() for value in values or ()]
        pages = [page if _is_whole(page) else page.clone() for page in whole]
        names = self._names(keys)
        offers = [
            BlockOffer(key=name, data=self._bytes_of(page), parent=parent)
            for name, page, parent in zip(names, pages, [None, *names], strict=False)
        ]
        self._try(self._store.put_many(offers), [], len(offers))
        return True

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: Sequence[str], extra_info: object = None) -> int:
        """How many of the first ones are there."""
        assert self._store is not None
        return self._try(self._store.count_prefix(self._names(keys)), 0, len(keys))

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            self._try(store.close(), None, 0)
            self._thread.close()

    # -- inside

    def _names(self, keys: Sequence[str]) -> list[CacheKey]:
        return [
            CacheKey(hashlib.blake2b(key.encode(), digest_size=32, key=self._identity).digest())
            for key in keys
        ]

    def _bytes_of(self, page: Any) -> memoryview:
        """A page's own memory, whatever its dtype."""
        return memoryview(page.view(self._uint8).numpy()).cast("B")

    def _try(self, work: Coroutine[Any, Any, ResultT], otherwise: ResultT, num_pages: int) -> ResultT:
        try:
            return self._thread.run(work)
        except Exception as error:
            kind = KVStoreFailureKind.BUSY if isinstance(error, TimeoutError) else KVStoreFailureKind.IO
            failure = KVStoreFailure(
                kind=kind, message=f"{type(error).__name__}: {error}", num_blocks=num_pages
            )
            self._failures.note(failure, time.monotonic())
            return otherwise


def _is_whole(page: Any) -> bool:
    """It is all of its memory, not a view into SGLang's."""
    return page is not None and page.is_contiguous() and page.untyped_storage().nbytes() == page.nbytes
