"""Settings of the built-in stores."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Eviction = Literal["lru", "lfu", "priority", "leaf-first"]


class StoreConfig(BaseModel):
    """``block_bytes``: the size of every block; blocks of another size are not kept. ``capacity_bytes`` is a
    bound; what does not fill a block is not used. ``eviction``: see ``dynamo_sdk.kv.eviction``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_bytes: int = Field(ge=1)
    capacity_bytes: int = Field(ge=1)
    eviction: Eviction = "lru"

    @model_validator(mode="after")
    def _holds_a_block(self) -> Self:
        if self.capacity_bytes < self.block_bytes:
            raise ValueError(
                f"a capacity of {self.capacity_bytes} bytes holds no block of {self.block_bytes} bytes"
            )
        return self


class RamStoreConfig(StoreConfig):
    pass


class DiskStoreConfig(StoreConfig):
    """``path``: a folder of this store alone. ``is_direct``: use direct I/O where the file system has it,
    which spares the page cache. ``num_*_threads``: reads and writes under way at once.
    ``max_pending_write_bytes``: offers beyond are refused, so that a slow disk holds nobody up."""

    path: Path
    is_direct: bool = True
    num_read_threads: int = Field(default=4, ge=1, le=64)
    num_write_threads: int = Field(default=2, ge=1, le=64)
    max_pending_write_bytes: int = Field(default=256 << 20, ge=1)
