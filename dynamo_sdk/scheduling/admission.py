"""``Admission``: who of those that wait may run."""

from __future__ import annotations

from collections import deque
from operator import attrgetter

from .blocks import SequenceBlocks
from .sequence import Sequence, SequenceState
from .step import SchedulerConfig, WantsLoad
from .table import SequenceTable


class Admission:
    """Moves sequences from ``waiting`` to ``running`` or ``loading`` and gives them blocks."""

    def __init__(self, config: SchedulerConfig, blocks: SequenceBlocks, table: SequenceTable) -> None:
        self._has_growth_reserve = config.enable_growth_reserve
        self._blocks = blocks
        self._table = table
        self._waiting = table.waiting
        self._loading = table.loading

    def admit(
        self,
        prefilling: list[Sequence],
        budget: int,
        num_slots: int,
        wants_load: WantsLoad | None = None,
    ) -> None:
        """Add waiting requests to ``prefilling`` until the budget, slots or blocks run out.

        Strictly in order, also among those that prefill already, except that one which had better wait
        for an earlier one's blocks is passed over; it keeps its claim to a slot.
        """
        earlier = deque(prefilling)
        first_keys = {sequence.keys[0] for sequence in (*prefilling, *self._loading) if sequence.keys}
        index = 0
        while index < len(self._waiting) and num_slots > 0:
            sequence = self._waiting[index]
            while earlier and earlier[0].order < sequence.order:
                budget -= earlier.popleft().num_uncomputed_tokens
            if budget <= 0:
                break
            num_slots -= 1
            first_key = sequence.keys[0] if sequence.keys else None
            # Keys are chained: where the first one differs, nothing is in common.
            if first_key in first_keys and self._blocks.is_worth_waiting(
                sequence, (*prefilling, *self._loading)
            ):
                index += 1
                continue
            if not self.allocate(sequence, sequence.num_tokens):
                break
            if first_key is not None:
                first_keys.add(first_key)
            is_onboarding, sequence.is_onboarding = sequence.is_onboarding, False
            if is_onboarding and self._is_loading(sequence, wants_load):
                self._table.move(sequence, SequenceState.LOADING)
                continue
            self._table.move(sequence, SequenceState.RUNNING)
            prefilling.append(sequence)
            budget -= sequence.num_uncomputed_tokens
        prefilling.sort(key=attrgetter("order"))

    def start_loads(self, num_slots: int, wants_load: WantsLoad | None = None) -> None:
        """Move those that load and are first in the queue to ``loading``, up to one that does not or cannot.
        Who would rather compute is asked again when it is admitted."""
        while self._waiting and num_slots > 0:
            sequence = self._waiting[0]
            if not sequence.is_onboarding or self._blocks.is_worth_waiting(sequence, self._leaders(sequence)):
                return
            prospect = self._blocks.prospect(sequence, num_spare_blocks=self._num_spare_blocks)
            if prospect is None or (wants_load is not None and not wants_load(prospect)):
                return
            has_blocks = self.allocate(sequence, sequence.num_tokens)
            assert has_blocks, "there was room for it"
            sequence.is_onboarding = False
            self._table.move(sequence, SequenceState.LOADING)
            num_slots -= 1

    def _leaders(self, sequence: Sequence) -> list[Sequence]:
        """Who fills blocks now and begins as ``sequence`` does."""
        return [
            leader
            for leader in (*self._table.running, *self._loading)
            if leader.num_uncomputed_tokens > 1 and leader.keys[:1] == sequence.keys[:1]
        ]

    def _is_loading(self, sequence: Sequence, wants_load: WantsLoad | None) -> bool:
        if not self._blocks.num_missing_blocks(sequence):
            return False
        return wants_load is None or wants_load(self._blocks.onboarding(sequence))

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for a newcomer, if that leaves each running request its next block (where configured)."""
        return self._blocks.allocate(sequence, num_tokens, num_spare_blocks=self._num_spare_blocks)

    @property
    def _num_spare_blocks(self) -> int:
        return len(self._table.running) + len(self._loading) if self._has_growth_reserve else 0
