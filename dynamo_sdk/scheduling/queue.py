"""``SequenceQueue``: sequences in their order, smaller (priority, arrival) first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from .sequence import Sequence

_by_order = attrgetter("order")


class SequenceQueue:
    """A sorted list. Arrivals of one priority append; O(log n) to find, a memmove to insert or remove."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def push(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=_by_order)

    def remove(self, sequence: Sequence) -> None:
        """Raises ``ValueError`` when it is not there."""
        index = bisect_left(self._sequences, sequence.order, key=_by_order)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            raise ValueError(f"request {sequence.request.request_id!r} is not in this queue")
        del self._sequences[index]

    def pop_last(self) -> Sequence:
        return self._sequences.pop()

    @property
    def num_uncomputed_tokens(self) -> int:
        return sum([sequence.num_tokens - sequence.num_computed_tokens for sequence in self._sequences])

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self._sequences[index]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)
