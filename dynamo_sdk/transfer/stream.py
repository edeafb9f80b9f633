"""Block bytes through a socket, on a thread. Where the memory is mapped, the kernel copies straight from
and into the blocks, many with one call; elsewhere each piece takes a detour through a buffer.

``remaining_s()`` gives the seconds left and raises when there are none; it is asked before each call. The
kernel watches the time within a call (``SO_RCVTIMEO``): a time-out of Python's would look for bytes with
one call more, and return with the first few.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sequence

from dynamo_sdk.errors import ConnectionLost
from dynamo_sdk.interfaces import BlockMemory

from .spans import MAX_BUFFERS, blocks_per_piece, buffers_after, neighbour_runs

_timeval = struct.Struct("@ll")


def send_blocks(
    connected: socket.socket,
    memory: BlockMemory,
    mapped: memoryview | None,
    block_ids: Sequence[int],
    remaining_s: Callable[[], float],
) -> None:
    """Send the blocks in this order. Raises ``OSError`` when the peer is gone or stuck. Leaves the
    socket blocking."""
    for ids, buffers in blocks_in_pieces(memory, mapped, block_ids):
        if mapped is None:
            memory.read(ids, buffers[0])
        _send_all(connected, buffers, remaining_s)


def receive_blocks(
    connected: socket.socket,
    memory: BlockMemory,
    mapped: memoryview | None,
    block_ids: Sequence[int],
    remaining_s: Callable[[], float],
) -> None:
    """Fill the blocks in this order. Raises ``OSError``, ``ConnectionLost``. Leaves the socket blocking."""
    for ids, buffers in blocks_in_pieces(memory, mapped, block_ids):
        receive_scattered(connected, buffers, remaining_s)
        if mapped is None:
            memory.write(ids, buffers[0])


def receive_pieces(
    connected: socket.socket, block_bytes: int, num_blocks: int, remaining_s: Callable[[], float]
) -> Iterator[tuple[int, memoryview]]:
    """Whole blocks as they come, in a buffer that the next piece overwrites: (number of the first, bytes)."""
    step = blocks_per_piece(block_bytes)
    buffer = memoryview(bytearray(min(step, num_blocks) * block_bytes))
    for first in range(0, num_blocks, step):
        piece = buffer[: min(step, num_blocks - first) * block_bytes]
        receive_scattered(connected, [piece], remaining_s)
        yield first, piece


def receive_scattered(
    connected: socket.socket, targets: Sequence[memoryview], remaining_s: Callable[[], float]
) -> None:
    """Fill ``targets`` (flat bytes), one after the other. Raises ``OSError``, ``ConnectionLost``. Leaves the
    socket blocking."""
    pending = list(targets)
    while pending:
        _block_for(connected, socket.SO_RCVTIMEO, remaining_s())
        try:
            num_bytes = connected.recvmsg_into(pending[:MAX_BUFFERS], 0, socket.MSG_WAITALL)[0]
        except BlockingIOError:
            raise TimeoutError("the peer sent no more bytes in time") from None
        pending = buffers_after(pending, _or_lost(num_bytes))


def receive_into(connected: socket.socket, target: memoryview, remaining_s: Callable[[], float]) -> None:
    """Fill ``target``. Raises ``OSError``, ``ConnectionLost`` at an early end."""
    while target:
        connected.settimeout(remaining_s())
        target = target[_or_lost(connected.recv_into(target)) :]


def blocks_in_pieces(
    memory: BlockMemory, mapped: memoryview | None, block_ids: Sequence[int]
) -> Iterator[tuple[Sequence[int], list[memoryview]]]:
    """Blocks that move together: runs of neighbours in place, or one buffer for all of them."""
    size = memory.layout.block_bytes
    step = min(blocks_per_piece(size), MAX_BUFFERS)
    spare = memoryview(bytearray(0 if mapped is not None else min(step, len(block_ids)) * size))
    for start in range(0, len(block_ids), step):
        ids = block_ids[start : start + step]
        if mapped is None:
            yield ids, [spare[: len(ids) * size]]
        else:
            runs = neighbour_runs(ids, step)
            yield ids, [_slice(mapped, ids[first], count, size) for first, count in runs]


def _block_for(connected: socket.socket, option: int, seconds: float) -> None:
    """Let the kernel wait in calls to come, at most so long in each."""
    connected.settimeout(None)
    whole_s = int(seconds)
    microseconds = max(int((seconds - whole_s) * 1e6), 1)  # all zero would mean forever
    connected.setsockopt(socket.SOL_SOCKET, option, _timeval.pack(whole_s, microseconds))


def _send_all(connected: socket.socket, buffers: list[memoryview], remaining_s: Callable[[], float]) -> None:
    while buffers:
        _block_for(connected, socket.SO_SNDTIMEO, remaining_s())
        try:
            num_bytes = connected.sendmsg(buffers)
        except BlockingIOError:
            raise TimeoutError("the peer took no more bytes in time") from None
        buffers = buffers_after(buffers, num_bytes)


def _or_lost(num_bytes: int) -> int:
    if num_bytes == 0:
        raise ConnectionLost("the block server closed the connection")
    return num_bytes


def _slice(mapped: memoryview, first: int, count: int, block_bytes: int) -> memoryview:
    # A memoryview would silently shorten a slice that reaches beyond its end.
    if first < 0 or (first + count) * block_bytes > len(mapped):
        raise IndexError(f"blocks {first} to {first + count - 1} of {len(mapped) // block_bytes}")
    return mapped[first * block_bytes : (first + count) * block_bytes]
