"""A prefill worker in a process of its own, for tests that need a real peer: to map, to kill."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from dynamo_sdk.transfer import BlockServer, HostBlockMemory
from dynamo_sdk.types import KVLayout, KVTransferParams, TransferSettings

from .conftest import Releases, fill


class PrefillProcess:
    """The parent's end. Every call waits for the child's answer, not longer than ten seconds."""

    def __init__(self, orders: Connection, process: Any) -> None:
        self._orders = orders
        self._process = process

    async def issue(self, request_id: str, block_ids: list[int]) -> KVTransferParams:
        return msgspec.msgpack.decode(await self._ask("issue", request_id, block_ids), type=KVTransferParams)

    async def released(self) -> dict[str, int]:
        counts: dict[str, int] = await self._ask("released")
        return counts

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.join, 10)
        assert self._process.exitcode == -9

    async def _ask(self, *order: Any) -> Any:
        def exchange() -> Any:
            self._orders.send(order)
            assert self._orders.poll(10), "the prefill process does not answer"
            return self._orders.recv()

        return await asyncio.to_thread(exchange)


@contextmanager
def prefill_process(
    addresses: list[str], layout: KVLayout, num_blocks: int, settings: TransferSettings | None = None
) -> Iterator[PrefillProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_main, args=(theirs, addresses, layout, num_blocks, settings), daemon=True
    )
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the prefill process does not start"
        assert ours.recv() == "ready"
        yield PrefillProcess(ours, process)
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _main(orders: Connection, *arguments: Any) -> None:
    asyncio.run(_serve(orders, *arguments))


async def _serve(
    orders: Connection,
    addresses: list[str],
    layout: KVLayout,
    num_blocks: int,
    settings: TransferSettings | None,
) -> None:
    memory = HostBlockMemory(layout, num_blocks)
    fill(memory, num_blocks)
    releases = Releases()
    server = BlockServer(settings=settings)
    await server.start(addresses)
    await server.register(memory)
    orders.send("ready")
    while True:
        try:
            name, *arguments = await asyncio.to_thread(orders.recv)
        except EOFError:
            break
        if name == "issue":
            request_id, block_ids = arguments
            params = server.issue(request_id, block_ids, memory, ttl_s=60, release=releases.of(request_id))
            orders.send(msgspec.msgpack.encode(params))
        else:
            orders.send(releases.counts)
    await server.close()
    memory.close()
