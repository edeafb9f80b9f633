"""``DecodeRun``: many steps at once, as long as every running request just decodes its next token.

For who drives a scheduler in virtual time and needs no token at its moment. The books after a run are those
that as many single steps leave, to the last block; what a run spares is touching each request in each step.

::

    steps   |  |  |  |  |  |  |  |       all requests decode one token in each
            ▲              ▲  ▲  ▲
            │              │  │  a request has all its tokens: the run is over
            │              │  a block is full: others can find it from here on
            │              a request needs a block: taken before the step
            the run begins

Between such moments a step is seen by nobody. ``num_quiet_steps`` says how many can go by until the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from dynamo_sdk.types.requests import SamplingParams

from .blocks import SequenceBlocks
from .sequence import Sequence

NextTokens = Callable[[SamplingParams, int, int], Iterable[int]]
"""(sampling, position, count): output tokens of one request, from ``position`` on."""

_Moment = tuple[int, int, Sequence]
"""The step, counted from the start of the run; the request's place in the order, which breaks ties; it."""


class DecodeRun:
    """``sequences`` have one token to compute each, and end by length alone; ``grow`` gives one a block."""

    def __init__(self, sequences: list[Sequence], blocks: SequenceBlocks, next_tokens: NextTokens) -> None:
        block_size = blocks.pool.block_size
        self.sequences = sequences
        self.num_done = 0
        self._blocks = blocks
        self._block_size = block_size
        self._next_tokens = next_tokens
        self._first_lengths = [sequence.num_tokens for sequence in sequences]
        self.num_kv_tokens = sum(self._first_lengths)
        self._ends = min([sequence.max_length - sequence.num_tokens for sequence in sequences])
        self._growths: list[_Moment] = []  # heaps: before this step a block is needed,
        self._fills: list[_Moment] = []  # and after this one a block is full
        for place, (sequence, length) in enumerate(zip(sequences, self._first_lengths, strict=True)):
            growth = max(0, len(sequence.block_ids) * block_size - length + 1)
            if growth < self._ends:
                self._growths.append((growth, place, sequence))
            if sequence.is_cacheable and (fill := -length % block_size) < self._ends:
                self._fills.append((fill, place, sequence))
        heapify(self._growths)
        heapify(self._fills)

    @property
    def is_over(self) -> bool:
        """Somebody has all tokens."""
        return self.num_done == self._ends

    def num_quiet_steps(self) -> int:
        """Take the blocks that the next step needs; how many steps can go by from now until somebody sees
        something: the cache changes, or a request ends. 0 = a block is missing, the run cannot go on."""
        pool, growths = self._blocks.pool, self._growths
        while growths and growths[0][0] == self.num_done:
            growth, place, sequence = growths[0]
            if not self._blocks.grow(sequence):
                return 0
            heappop(growths)
            if growth + self._block_size < self._ends:
                heappush(growths, (growth + self._block_size, place, sequence))
        if pool.has_events:
            return 1
        end = self._ends
        if self._fills:
            end = min(end, self._fills[0][0] + 1)
        if growths:
            end = min(end, growths[0][0])
        return end - self.num_done

    def advance(self, num_steps: int) -> list[Sequence]:
        """At most ``num_quiet_steps`` have gone by; those that filled a block with the last one, in order."""
        self.num_done += num_steps
        self.num_kv_tokens += num_steps * len(self.sequences)
        fills, filled = self._fills, []
        last = self.num_done - 1
        while fills and fills[0][0] == last:
            fill, place, sequence = heappop(fills)
            self._catch_up(place, sequence)
            filled.append(sequence)
            if fill + self._block_size < self._ends:
                heappush(fills, (fill + self._block_size, place, sequence))
        return filled

    def catch_up(self) -> None:
        """Give every request the tokens of the steps so far."""
        for place, sequence in enumerate(self.sequences):
            self._catch_up(place, sequence)

    def _catch_up(self, place: int, sequence: Sequence) -> None:
        num_missing = self._first_lengths[place] + self.num_done - sequence.num_tokens
        if num_missing:
            sequence.output_ids.extend(
                self._next_tokens(sequence.request.sampling, len(sequence.output_ids), num_missing)
            )
            sequence.num_tokens += num_missing
            sequence.num_computed_tokens += num_missing
