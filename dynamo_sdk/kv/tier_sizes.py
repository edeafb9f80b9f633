"""Capacities that cannot work are refused before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TierSize:
    name: str
    capacity_bytes: int


def check_tier_sizes(device_bytes: int, tiers: Sequence[TierSize], block_bytes: int) -> None:
    """``tiers`` from the fastest down, below ``device_bytes`` of blocks on the device.

    A tier that holds less than the one above it is full of what that one still has: every block that comes
    down pushes out one that is not above, so that nothing is ever found in it. Raises ``ConfigError``.
    """
    above = TierSize("the device", device_bytes)
    for tier in tiers:
        if tier.capacity_bytes < block_bytes:
            raise ConfigError(
                f"tier {tier.name!r}: {tier.capacity_bytes} bytes hold no block of {block_bytes} bytes"
            )
        if tier.capacity_bytes < above.capacity_bytes:
            raise ConfigError(
                f"tier {tier.name!r} of {tier.capacity_bytes} bytes is smaller than {above.name} above it "
                f"({above.capacity_bytes} bytes), so it would hold nothing but copies; give it at least "
                f"{above.capacity_bytes} bytes, better twice that, or leave it out"
            )
        above = TierSize(f"tier {tier.name!r}", tier.capacity_bytes)
