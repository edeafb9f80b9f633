"""The latency ledger: where the time of a request went, stage by stage."""

from __future__ import annotations

import msgspec

from dynamo_sdk.metrics import LEDGER_STAGES
from dynamo_sdk.types import LegTiming

_SERVER_TIMING = [
    ", ".join([f"{stage};dur=%.3f" for stage in LEDGER_STAGES[:num_stages]]).encode()
    for num_stages in range(len(LEDGER_STAGES) + 1)
]


class Ledger(msgspec.Struct, frozen=True):
    """Microseconds, from the last byte of the request to its last token; the stages sum to ``total_us``.

    ``queue_us``, ``prefill_us``, ``transfer_us`` and ``decode_us`` are what the engines say of their legs,
    by their own clocks. ``route_us``: from asking the router until the request is on its way. ``sdk_us`` is
    the rest: HTTP, the way to the workers and back, text, waiting for a turn, and what a lost leg had done.
    """

    tokenize_us: int
    route_us: int
    queue_us: int
    prefill_us: int
    transfer_us: int
    decode_us: int
    sdk_us: int
    total_us: int

    def stages_us(self) -> tuple[int, ...]:
        """In the order of ``LEDGER_STAGES``."""
        return msgspec.structs.astuple(self)[:-1]


def settle(*, total_s: float, tokenize_s: float, route_s: float, legs: LegTiming) -> Ledger:
    """``legs``: all legs together. Where clocks disagree, nothing is left for the SDK and the sum counts."""
    parts = (tokenize_s, route_s, legs.queue_s, legs.prefill_s, legs.transfer_s, legs.decode_s)
    known = [max(0, round(part_s * 1e6)) for part_s in parts]
    sdk_us = max(0, round(total_s * 1e6) - sum(known))
    return Ledger(*[*known, sdk_us, sum(known) + sdk_us])


def server_timing(*stages_us: int) -> bytes:
    """The value of a ``Server-Timing`` header (W3C), whose unit is milliseconds, for the first stages."""
    return _SERVER_TIMING[len(stages_us)] % tuple([stage_us / 1000 for stage_us in stages_us])
