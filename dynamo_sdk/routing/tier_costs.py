"""What a block in a tier below a worker's device is worth: what loading it spares of computing it.

A worker reports what its loads take (``LoadSnapshot.block_load_times``) as it has measured it, and computes
what would take longer to load. Until then a share of the computing is assumed to be spared.
"""

from __future__ import annotations

from dynamo_sdk.interfaces import Candidate
from dynamo_sdk.types import BlockLoadTimes

_UNKNOWN = BlockLoadTimes()


def load_times(candidate: Candidate) -> BlockLoadTimes:
    """As its last report has them."""
    load = candidate.load
    return _UNKNOWN if load is None or load.block_load_times is None else load.block_load_times


def share_saved(load_s: float | None, block_s: float, credit: float) -> float:
    """Of computing a block, which takes ``block_s``. ``credit``: where nobody knows."""
    if load_s is None or not block_s:
        return credit
    return max(0.0, 1 - load_s / block_s)


def num_useful_blocks(candidate: Candidate, block_size: int) -> int:
    """Of the prompt's blocks that it holds, those that it would not compute all the same."""
    overlap = candidate.overlap
    if not (overlap.host_blocks or overlap.disk_blocks or overlap.remote_blocks):
        return overlap.device_blocks
    times, block_s = load_times(candidate), candidate.prefill_s_per_token * block_size
    below = (
        (times.host_s, overlap.host_blocks),
        (times.disk_s, overlap.disk_blocks),
        (times.remote_s, overlap.remote_blocks),
    )
    return overlap.device_blocks + sum(
        num_blocks for load_s, num_blocks in below if share_saved(load_s, block_s, 1.0) > 0
    )
