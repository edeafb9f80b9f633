"""A worker's tiers, open to the other workers of its pool: a server for them to read from, and the secret
with which its own store reads theirs."""

from __future__ import annotations

from collections.abc import Callable

from dynamo_sdk.interfaces import Engine, HasKVTiers, KVStore, ReadsPeers
from dynamo_sdk.stores import PeerServer

StoreFactory = Callable[[int], KVStore]


def trusting(build: StoreFactory, secret: str | None) -> StoreFactory:
    """``build``, and what it makes knows the secret if it reads from others."""

    def build_trusting(block_bytes: int) -> KVStore:
        store = build(block_bytes)
        if isinstance(store, ReadsPeers):
            store.trust(None if secret is None else secret.encode())
        return store

    return build_trusting


async def serve_tiers(engine: Engine, address: str, secret: str | None) -> tuple[PeerServer, str] | None:
    """A server at ``address`` for what others may read of the engine, and where they reach it; None where
    there is nothing. Close it before the engine."""
    readable = engine.readable_tiers() if isinstance(engine, HasKVTiers) else None
    if readable is None or not readable.stores:
        return None
    server = PeerServer(
        readable.stores, readable.block_bytes, secret=None if secret is None else secret.encode()
    )
    [reached_at] = await server.start([address])
    return server, reached_at
