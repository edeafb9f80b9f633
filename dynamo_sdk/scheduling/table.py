"""``SequenceTable``: every request that a scheduler knows, by id and by state. No blocks, no policy."""

from __future__ import annotations

from collections.abc import Iterable, ValuesView

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces.kv_store import CacheKey
from dynamo_sdk.types.requests import GenerateRequest

from .queue import SequenceQueue
from .sequence import Sequence, SequenceState, open_sequence
from .step import SchedulerConfig


class SequenceTable:
    """``waiting`` and ``running`` are in order; ``loading`` is as they were admitted."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._sequences: dict[str, Sequence] = {}
        self.waiting = SequenceQueue()
        self.running = SequenceQueue()
        self.loading: list[Sequence] = []
        self._num_reserved = 0
        self._num_arrivals = 0

    def __getitem__(self, request_id: str) -> Sequence:
        return self._sequences[request_id]

    def get(self, request_id: str) -> Sequence | None:
        return self._sequences.get(request_id)

    def values(self) -> ValuesView[Sequence]:
        return self._sequences.values()

    def open(
        self,
        request: GenerateRequest,
        state: SequenceState,
        keys: Iterable[CacheKey] | None,
        *,
        is_onboarding: bool = False,
    ) -> Sequence:
        """A newcomer, to ``add``. Raises ``InvalidRequest``: too long, id in use."""
        if request.request_id in self._sequences:
            raise InvalidRequest(
                f"request id {request.request_id!r} is already in use on this worker", param="request_id"
            )
        self._num_arrivals += 1
        return open_sequence(
            request,
            self._config,
            order=(request.priority, self._num_arrivals),
            state=state,
            keys=keys,
            is_onboarding=is_onboarding,
        )

    def add(self, sequence: Sequence) -> None:
        """In the state in which it was opened."""
        self._sequences[sequence.request.request_id] = sequence
        self.enter(sequence, sequence.state)

    def move(self, sequence: Sequence, state: SequenceState) -> None:
        self._leave(sequence)
        self.enter(sequence, state)

    def enter(self, sequence: Sequence, state: SequenceState) -> None:
        """It is in no queue now."""
        sequence.state = state
        match state:
            case SequenceState.WAITING:
                self.waiting.push(sequence)
            case SequenceState.RUNNING:
                self.running.push(sequence)
            case SequenceState.LOADING:
                self.loading.append(sequence)
            case SequenceState.RESERVED:
                self._num_reserved += 1
            case _:
                pass

    def forget(self, sequence: Sequence) -> None:
        self.move(sequence, SequenceState.GONE)
        del self._sequences[sequence.request.request_id]

    def _leave(self, sequence: Sequence) -> None:
        match sequence.state:
            case SequenceState.WAITING:
                self.waiting.remove(sequence)
            case SequenceState.RUNNING:
                self.running.remove(sequence)
            case SequenceState.LOADING:
                self.loading.remove(sequence)
            case SequenceState.RESERVED:
                self._num_reserved -= 1
            case _:
                pass

    @property
    def num_free_slots(self) -> int:
        return self._config.max_num_seqs - len(self.running) - len(self.loading) - self._num_reserved

    @property
    def num_waiting(self) -> int:
        """For blocks and a slot, or for KV to be loaded."""
        return len(self.waiting) + len(self.loading)

    @property
    def num_waiting_tokens(self) -> int:
        """To be computed; the one that a decode computes next is not."""
        num_tokens = self.waiting.num_uncomputed_tokens
        num_tokens += self.running.num_uncomputed_tokens - len(self.running)
        return num_tokens + sum([sequence.num_uncomputed_tokens for sequence in self.loading])

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up."""
        in_state = {state: [s for s in self.values() if s.state is state] for state in SequenceState}
        assert not in_state[SequenceState.GONE], "a request is gone and known"
        for queue, state in ((self.waiting, SequenceState.WAITING), (self.running, SequenceState.RUNNING)):
            assert list(queue) == sorted(in_state[state], key=lambda s: s.order), (
                f"the {state} queue is wrong"
            )
        assert self._num_reserved == len(in_state[SequenceState.RESERVED])
        assert sorted(map(id, self.loading)) == sorted(map(id, in_state[SequenceState.LOADING]))
        assert self.num_free_slots >= 0, "more requests than slots"
