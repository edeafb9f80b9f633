"""``TokenSource``: which token a simulated engine says next."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_sdk.types import SamplingParams

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class TokenSource:
    """A pure function of (seed, position): the same request gives the same tokens on every worker.

    ``first_id`` and ``end_id`` bound the ids (half-open). ``eos_token_ids`` are never said, except that
    with ``eos_after_tokens`` the first of them is the output token of that number.
    Raises ``ValueError`` when no id is left.
    """

    def __init__(
        self,
        first_id: int,
        end_id: int,
        *,
        eos_token_ids: tuple[int, ...] = (),
        eos_after_tokens: int | None = None,
    ) -> None:
        ids: Sequence[int] = range(first_id, end_id)
        if any(eos in ids for eos in eos_token_ids):
            ids = tuple(token_id for token_id in ids if token_id not in eos_token_ids)
        if not ids or first_id < 0:
            raise ValueError(f"no token ids to say from {first_id} up to {end_id}")
        if eos_after_tokens is not None and not eos_token_ids:
            raise ValueError("eos_after_tokens needs a model that has an end token")
        self.eos_token_ids = eos_token_ids
        self._ids = ids
        self._num_ids = len(ids)
        self._eos_position = None if eos_after_tokens is None else eos_after_tokens - 1

    def next_ids(self, sampling: SamplingParams, position: int, count: int) -> list[int]:
        """``count`` output tokens from ``position`` on."""
        return [self.next_id(sampling, at) for at in range(position, position + count)]

    def next_id(self, sampling: SamplingParams, position: int) -> int:
        """The output token at ``position``, counted from 0 over all legs."""
        if (
            self._eos_position is not None
            and position >= max(self._eos_position, sampling.min_tokens - 1)
            and not sampling.ignore_eos
        ):
            return self.eos_token_ids[0]
        # The output function of SplitMix64 (Steele, Lea, Flood 2014), over a seed mixed with the position.
        mixed = (sampling.seed * 0xD1342543DE82EF95 + (position + 1) * _GOLDEN_GAMMA) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return self._ids[(mixed ^ (mixed >> 31)) % self._num_ids]
