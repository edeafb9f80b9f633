"""What a worker sends back, token by token."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .kv_transfer import KVTransferParams


class FinishReason(StrEnum):
    """Why a leg ended. ``HANDOVER`` ends a prefill leg that decode must continue; clients never see it."""

    STOP = "stop"
    LENGTH = "length"
    HANDOVER = "handover"


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of one emitted token: its logprob, and ``(token_id, logprob)`` of the most likely, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Of one leg. ``num_cached_tokens``: prompt tokens whose KV was found on the worker, in any tier, and not
    computed or fetched."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0


class LegTiming(msgspec.Struct, frozen=True, array_like=True):
    """Where one leg's time went, by the worker's clock. ``transfer_*``: KV that came from another worker or
    was loaded from a lower tier. ``transfer_back_end``: what moved it between workers, if that is known."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    transfer_s: float = 0.0
    transfer_bytes: int = 0
    transfer_back_end: str = ""

    def plus(self, other: LegTiming) -> LegTiming:
        """Both, one after the other."""
        return LegTiming(
            queue_s=self.queue_s + other.queue_s,
            prefill_s=self.prefill_s + other.prefill_s,
            decode_s=self.decode_s + other.decode_s,
            transfer_s=self.transfer_s + other.transfer_s,
            transfer_bytes=self.transfer_bytes + other.transfer_bytes,
            transfer_back_end=other.transfer_back_end or self.transfer_back_end,
        )


class GenerateChunk(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one request. The deltas sum to the output; the last chunk has a ``finish_reason``.

    ``logprobs`` is as long as ``token_ids`` where the request asked for them, else None.
    ``usage`` and ``timing`` come with the last chunk, ``kv_transfer`` with ``HANDOVER``.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    kv_transfer: KVTransferParams | None = None
    timing: LegTiming | None = None
