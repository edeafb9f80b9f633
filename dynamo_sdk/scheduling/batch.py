"""``Batch``: a step while it is being put together."""

from __future__ import annotations

from dynamo_sdk.types.tokens import BYTES_PER_TOKEN

from .sequence import Sequence
from .step import Onboarding, ScheduledSequence, Step


class Batch:
    """At most ``budget`` tokens of work. ``sequences`` and the step's parts go in parallel."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sequences: list[Sequence] = []
        self.preempted: list[str] = []
        self.onboarding: tuple[Onboarding, ...] = ()
        self._parts: list[ScheduledSequence] = []
        self._num_tokens = 0
        self._num_decodes = 0
        self._num_decode_kv_tokens = 0

    def add_last_token(self, sequence: Sequence) -> None:
        """Compute its one token that is not computed yet."""
        length = sequence.num_tokens
        num_output_tokens = length - sequence.num_prompt_tokens
        if num_output_tokens > 0:
            self._num_decodes += 1
            self._num_decode_kv_tokens += length
            tokens = sequence.output_ids[-1].to_bytes(BYTES_PER_TOKEN, "little")
        else:
            tokens = sequence.packed_tokens(length - 1, length)
        self.budget -= 1
        self._num_tokens += 1
        self.sequences.append(sequence)
        self._parts.append(
            ScheduledSequence(
                request=sequence.request,
                tokens=tokens,
                start=length - 1,
                block_ids=sequence.block_ids,
                is_sampling=True,
                num_output_tokens=num_output_tokens,
            )
        )

    def add_chunk(self, sequence: Sequence) -> None:
        """Compute as many of its tokens as the budget has left, perhaps none."""
        num_tokens = min(sequence.num_uncomputed_tokens, self.budget)
        if not num_tokens:
            return
        start = sequence.num_computed_tokens
        end = start + num_tokens
        self.budget -= num_tokens
        self._num_tokens += num_tokens
        self.sequences.append(sequence)
        self._parts.append(
            ScheduledSequence(
                request=sequence.request,
                tokens=sequence.packed_tokens(start, end),
                start=start,
                block_ids=sequence.block_ids,
                is_sampling=end == sequence.num_tokens,
                num_output_tokens=sequence.num_tokens - sequence.num_prompt_tokens,
            )
        )

    def to_step(self, number: int) -> Step:
        return Step(
            number=number,
            sequences=tuple(self._parts),
            num_prefill_requests=len(self._parts) - self._num_decodes,
            num_prefill_tokens=self._num_tokens - self._num_decodes,
            num_decode_requests=self._num_decodes,
            num_decode_kv_tokens=self._num_decode_kv_tokens,
            preempted=tuple(self.preempted),
            onboarding=self.onboarding,
        )
