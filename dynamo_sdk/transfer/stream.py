"""Block bytes through a socket, on a thread. Where the memory is mapped, the kernel copies straight from
and into the blocks; elsewhere each piece takes a detour through a buffer.

``remaining_s()`` gives the seconds left and raises when there are none; it is asked before each piece.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from dynamo_sdk.errors import ConnectionLost
from dynamo_sdk.interfaces import BlockMemory

from .spans import blocks_per_piece, neighbour_runs


def send_blocks(
    connected: socket.socket,
    memory: BlockMemory,
    mapped: memoryview | None,
    block_ids: Sequence[int],
    remaining_s: Callable[[], float],
) -> None:
    """Send the blocks in this order. Raises ``OSError`` when the peer is gone or stuck."""
    size = memory.layout.block_bytes
    step = blocks_per_piece(size)
    if mapped is not None:
        for start, count in neighbour_runs(block_ids, step):
            piece = _slice(mapped, block_ids[start], count, size)
            connected.settimeout(remaining_s())
            connected.sendall(piece)
        return
    buffer = memoryview(bytearray(min(step, len(block_ids)) * size))
    for start in range(0, len(block_ids), step):
        ids = block_ids[start : start + step]
        piece = buffer[: len(ids) * size]
        memory.read(ids, piece)
        connected.settimeout(remaining_s())
        connected.sendall(piece)


def receive_blocks(
    connected: socket.socket,
    memory: BlockMemory,
    mapped: memoryview | None,
    block_ids: Sequence[int],
    remaining_s: Callable[[], float],
) -> None:
    """Fill the blocks in this order. Raises ``OSError``, ``ConnectionLost``."""
    size = memory.layout.block_bytes
    step = blocks_per_piece(size)
    if mapped is not None:
        for start, count in neighbour_runs(block_ids, step):
            receive_into(connected, _slice(mapped, block_ids[start], count, size), remaining_s)
        return
    buffer = memoryview(bytearray(min(step, len(block_ids)) * size))
    for start in range(0, len(block_ids), step):
        ids = block_ids[start : start + step]
        piece = buffer[: len(ids) * size]
        receive_into(connected, piece, remaining_s)
        memory.write(ids, piece)


def receive_into(connected: socket.socket, target: memoryview, remaining_s: Callable[[], float]) -> None:
    """Fill ``target``. Raises ``OSError``, ``ConnectionLost`` at an early end."""
    while target:
        connected.settimeout(remaining_s())
        received = connected.recv_into(target)
        if received == 0:
            raise ConnectionLost("the block server closed the connection")
        target = target[received:]


def _slice(mapped: memoryview, first: int, count: int, block_bytes: int) -> memoryview:
    # A memoryview would silently shorten a slice that reaches beyond its end.
    if first < 0 or (first + count) * block_bytes > len(mapped):
        raise IndexError(f"blocks {first} to {first + count - 1} of {len(mapped) // block_bytes}")
    return mapped[first * block_bytes : (first + count) * block_bytes]
