from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynamo_sdk.transfer import HostBlockMemory
from dynamo_sdk.types import KVLayout

LAYOUT = KVLayout(fingerprint="test/f32/2x4", block_size=16, block_bytes=4096)


def pattern(block_id: int, num_bytes: int, seed: str = "peer") -> bytes:
    """Bytes that tell every block of every memory from every other."""
    digest = hashlib.sha256(f"{seed}/{block_id}".encode()).digest()
    return (digest * (num_bytes // len(digest) + 1))[:num_bytes]


def fill(memory: HostBlockMemory, num_blocks: int, seed: str = "peer") -> None:
    for block_id in range(num_blocks):
        memory.write([block_id], memoryview(pattern(block_id, memory.layout.block_bytes, seed)))


def content(memory: HostBlockMemory, block_id: int) -> bytes:
    return memory.blocks[block_id].tobytes()


@dataclass
class ManualClock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Releases:
    """Counts the calls of each request's release callback."""

    counts: dict[str, int] = field(default_factory=dict)

    def of(self, request_id: str):  # type: ignore[no-untyped-def]
        self.counts[request_id] = 0

        def release() -> None:
            self.counts[request_id] += 1

        return release


@pytest.fixture
def releases() -> Releases:
    return Releases()


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def memories() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/blocks.sock"


def host_memory(stack: ExitStack, num_blocks: int, layout: KVLayout = LAYOUT) -> HostBlockMemory:
    memory = HostBlockMemory(layout, num_blocks)
    stack.callback(memory.close)
    return memory
