"""A decode worker in a process of its own, for tests that kill it while it reads."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec

from dynamo_sdk.transfer import BlockFetcher, HostBlockMemory
from dynamo_sdk.types import KVLayout, KVTransferParams, TransferSettings


class ReaderProcess:
    """The parent's end."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders

    def read(self, params: KVTransferParams) -> None:
        """Begin to fetch all blocks. Returns when that is about to begin."""
        self._orders.send_bytes(msgspec.msgpack.encode(params))
        assert self._orders.recv() == "begins"

    async def wait(self, timeout_s: float) -> str:
        """What it says when it has read."""
        assert await asyncio.to_thread(self._orders.poll, timeout_s), "the reader says nothing"
        said: str = self._orders.recv()
        return said


@contextmanager
def reader_process(layout: KVLayout, num_blocks: int, settings: TransferSettings) -> Iterator[ReaderProcess]:
    """Killed at the end, whatever it does."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, layout, num_blocks, settings), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ReaderProcess(ours)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _main(orders: Connection, layout: KVLayout, num_blocks: int, settings: TransferSettings) -> None:
    asyncio.run(_read(orders, layout, num_blocks, settings))


async def _read(orders: Connection, layout: KVLayout, num_blocks: int, settings: TransferSettings) -> None:
    memory = HostBlockMemory(layout, num_blocks)
    fetcher = BlockFetcher(settings=settings)
    while True:
        params = msgspec.msgpack.decode(await asyncio.to_thread(orders.recv_bytes), type=KVTransferParams)
        orders.send("begins")
        await fetcher.fetch(params, [(index, index) for index in range(num_blocks)], memory, timeout_s=60)
        orders.send("read")
