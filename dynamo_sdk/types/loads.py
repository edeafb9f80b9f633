"""How busy a worker is: a snapshot for routing, one record per engine step for planning."""

from __future__ import annotations

import msgspec


class BlockLoadTimes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds that it takes to load a block from a tier below the device, one of many, as measured; None =
    there is no such tier, or nobody knows."""

    host_s: float | None = None
    disk_s: float | None = None
    remote_s: float | None = None


class LoadSnapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's load at ``at_s`` of its own monotonic clock. ``block_load_times`` None: it has no tiers."""

    at_s: float
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0  # prompt tokens not yet computed
    num_free_blocks: int = 0
    num_blocks: int = 0
    block_load_times: BlockLoadTimes | None = None


class ForwardPassMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine step. ``wall_s`` is its duration; counts are of this step, queues are at its end."""

    step: int
    at_s: float
    wall_s: float
    num_prefill_requests: int = 0
    num_prefill_tokens: int = 0
    num_decode_requests: int = 0
    num_decode_kv_tokens: int = 0
    num_preempted: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    num_free_blocks: int = 0
