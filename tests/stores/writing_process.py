"""Fills a disk store until it is killed: ``python -m tests.stores.writing_process FOLDER``. Once it is
full, it says how far it came after every batch."""

import os
import sys
from itertools import count
from pathlib import Path

import anyio

from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.stores import DiskStore

from .conftest import block, disk_config, key

NUM_BLOCKS = 64
BLOCK_BYTES = 64 << 10


def config_of(path):
    return disk_config(path, num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)


async def main(path):
    store = DiskStore(config_of(path))
    await store.start()
    for start in count(0, 16):
        numbers = range(start, start + 16)
        await store.put_many([BlockOffer(key(n), block(n, BLOCK_BYTES)) for n in numbers])
        if start >= NUM_BLOCKS:
            os.write(1, b"%d\n" % start)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
