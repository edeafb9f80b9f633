"""How an engine lets others read and write its KV blocks. Only the worker service joins it to ``transfer/``.

Ownership::

    prefill side   generate(role=PREFILL) ends with HANDOVER -> blocks are HELD under request_id
                   held_blocks(id) -> ids to copy from       -> release_blocks(id): back to the pool
    decode side    reserve_blocks(request) -> ids to copy into (RESERVED under request_id)
                   generate(same request, role=DECODE) takes them over; or release_blocks(id)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.types.kv_transfer import KVLayout
from dynamo_sdk.types.requests import GenerateRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRegion:
    """Block memory that another process of this host can map: file descriptor ``fd`` of process ``pid``.

    Block ``i`` lies at ``i * layout.block_bytes``.
    """

    pid: int
    fd: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySpan:
    """Block memory as this process addresses it, for networks that reach into it. Block ``i`` lies at
    ``address + i * layout.block_bytes``. ``gpu``: the CUDA device that the address belongs to, or None."""

    address: int
    size_bytes: int
    gpu: int | None = None


class BlockMemory(ABC):
    """The bytes of an engine's blocks. Callable from any thread, at once for different blocks."""

    @property
    @abstractmethod
    def layout(self) -> KVLayout: ...

    @property
    def shared_region(self) -> SharedRegion | None:
        """Set when other processes can map the blocks directly."""
        return None

    @property
    def span(self) -> MemorySpan | None:
        """Set when the blocks lie in one piece that stays where it is for as long as this object lives."""
        return None

    @abstractmethod
    def read(self, block_ids: Sequence[int], into: memoryview) -> None:
        """Copy the blocks, in this order, into ``into`` (``len(block_ids) * block_bytes`` bytes)."""

    @abstractmethod
    def write(self, block_ids: Sequence[int], data: memoryview) -> None:
        """Copy ``data`` (``len(block_ids) * block_bytes`` bytes) into the blocks, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReservation:
    """Blocks for the known tokens of one request: ``ceil(num_tokens / block_size)`` ids, in order.

    The first ``num_cached_blocks`` already hold the right KV and must not be written; the last block
    may be partly used.
    """

    block_ids: tuple[int, ...]
    num_cached_blocks: int


class ExposesBlocks(ABC):
    """An engine whose blocks can be handed over to, or taken over from, another engine of one layout."""

    @property
    @abstractmethod
    def block_memory(self) -> BlockMemory: ...

    @abstractmethod
    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        """The blocks of a prefill leg that ended with ``HANDOVER``, in order. ``KeyError`` if not held."""

    @abstractmethod
    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        """Set blocks aside for the KV of all tokens of ``request`` but the last one of ``generated``,
        waiting while memory is short.

        The caller fills them, then runs ``generate`` with the same request and ``role=DECODE``, which
        computes nothing of what was filled. Cancelling while it waits leaves nothing reserved.
        Raises ``InvalidRequest`` when it can never fit.
        """

    def kv_identity(self, request: GenerateRequest) -> bytes:
        """What the request's KV depends on beside its tokens and the layout, such as the weights of its
        adapter. Blocks go from one engine to another only where both say the same. Asked while a prefill leg
        holds its blocks, and right after ``reserve_blocks``."""
        return b""

    @abstractmethod
    def release_blocks(self, request_id: str) -> None:
        """Give held or reserved blocks back. Idempotent; unknown ids and running requests are ignored."""
