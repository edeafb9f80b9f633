"""Settings of the built-in stores."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

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


class PeerStoreConfig(BaseModel):
    """Blocks of other workers. ``timeout_s``: for one batch of blocks of one worker, connecting included;
    ``connect_timeout_s``: for connecting alone. ``num_concurrent``: batches under way at once. What a request
    said about another worker is believed for ``expect_s``, for ``max_expected_keys`` blocks at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_bytes: int = Field(ge=1)
    timeout_s: float = Field(default=2.0, gt=0)
    connect_timeout_s: float = Field(default=0.5, gt=0)
    num_concurrent: int = Field(default=4, ge=1, le=64)
    expect_s: float = Field(default=60.0, gt=0)
    max_expected_keys: int = Field(default=1 << 16, ge=1)


class S3StoreConfig(BaseModel):
    """``bucket`` exists already; it may be shared by all workers and deployments, for keys tell models,
    layouts and tenants apart. ``endpoint_url``: of any server that speaks S3, addressed by path; None = AWS.
    Credentials and ``region`` that are not given come from the environment (``AWS_ACCESS_KEY_ID``, ...) or
    from the instance. Room is made by the bucket's lifecycle rules, not by the store.

    ``timeout_s``: for one object. ``num_concurrent``: loads at once, and as many writes; so many objects are
    held in memory for each. ``max_pending_write_bytes``: offers beyond are refused. What was found present
    is believed for ``present_s``, what was absent for ``absent_s``, both for ``max_known_keys`` at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_bytes: int = Field(ge=1)
    bucket: str = Field(min_length=1)
    prefix: str = "dynamo-sdk"
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    timeout_s: float = Field(default=5.0, gt=0)
    connect_timeout_s: float = Field(default=2.0, gt=0)
    num_concurrent: int = Field(default=16, ge=1, le=256)
    max_pending_write_bytes: int = Field(default=256 << 20, ge=1)
    present_s: float = Field(default=600.0, gt=0)
    absent_s: float = Field(default=10.0, gt=0)
    max_known_keys: int = Field(default=1 << 17, ge=1)

    @field_validator("endpoint_url")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"begin with http:// or https://, unlike {url!r}")
        return url

    @model_validator(mode="after")
    def _has_whole_credentials(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("give both access_key_id and secret_access_key, or neither")
        return self
