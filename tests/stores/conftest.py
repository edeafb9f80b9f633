"""Stores under test, and what they are filled with."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from dynamo_sdk.interfaces import KVStoreListener
from dynamo_sdk.stores import DiskStore, DiskStoreConfig, RamStore, RamStoreConfig

BLOCK_BYTES = 8192
NUM_BLOCKS = 6


def key(number):
    return blake2b(b"key %d" % number, digest_size=16).digest()


def block(number, block_bytes=BLOCK_BYTES):
    pattern = blake2b(b"block %d" % number).digest()
    return (pattern * (block_bytes // len(pattern) + 1))[:block_bytes]


def disk_config(path, *, num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES, **settings):
    slot_bytes = -(-block_bytes // 4096) * 4096
    return DiskStoreConfig(
        path=path, block_bytes=block_bytes, capacity_bytes=num_blocks * slot_bytes, **settings
    )


class Witness(KVStoreListener):
    """Keeps the keys as a mirror, and all failures."""

    def __init__(self):
        self.keys = set()
        self.failures = []
        self.loads = []

    def stored(self, keys):
        assert self.keys.isdisjoint(keys), "stored twice"
        self.keys.update(keys)

    def removed(self, keys):
        assert self.keys.issuperset(keys), "removed twice"
        self.keys.difference_update(keys)

    def moved(self, num_bytes, elapsed_s, *, is_load):
        self.loads.append((num_bytes, elapsed_s, is_load))

    def failed(self, failure):
        self.failures.append(failure)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=["ram", "disk", "disk, odd blocks", "disk, page cache"])
def make_store(request, tmp_path):
    """Makes empty stores of ``NUM_BLOCKS`` blocks (``block_bytes`` is an attribute)."""
    numbers = iter(range(100))

    def make(eviction="lru"):
        if request.param == "ram":
            return RamStore(
                RamStoreConfig(
                    block_bytes=BLOCK_BYTES, capacity_bytes=NUM_BLOCKS * BLOCK_BYTES, eviction=eviction
                )
            )
        return DiskStore(
            disk_config(
                tmp_path / str(next(numbers)),
                block_bytes=make.block_bytes,
                is_direct=request.param != "disk, page cache",
                eviction=eviction,
            )
        )

    make.block_bytes = 5000 if request.param == "disk, odd blocks" else BLOCK_BYTES
    return make
