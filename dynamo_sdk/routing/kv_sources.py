"""Whose tiers a worker should read, when another one of its model holds clearly more of a prompt.

Each worker is said to have, remotely, what the best of the others has beyond its own blocks, so that a router
sees what going there would really take. The one that is chosen is told whom to ask; whether reading is faster
than computing is its own decision, from what it has measured.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import msgspec

from dynamo_sdk.interfaces import Candidate, Overlap
from dynamo_sdk.interfaces.router import NO_OVERLAP
from dynamo_sdk.types import WorkerId

from .seats import Seat

MIN_GAIN_BLOCKS = 4
"""Less is not worth a question."""


class KVSources:
    """For one prompt at a time. Seats whose workers do not read from others are left out."""

    def __init__(self) -> None:
        self._best: dict[Hashable, list[tuple[int, Seat]]] = {}  # by `sharing`: two workers, more first

    def look_up(self, found: Mapping[int, Overlap], seats: Mapping[int, Seat]) -> None:
        """``found``: what the seats hold of the prompt."""
        self._best.clear()
        for number, overlap in found.items():
            seat = seats.get(number)
            if seat is None or seat.sharing is None or overlap.readable_blocks < MIN_GAIN_BLOCKS:
                continue
            best = self._best.setdefault(seat.sharing, [])
            best.append((overlap.readable_blocks, seat))
            best.sort(key=lambda entry: (-entry[0], entry[1].candidate.num_active_requests))
            if len(best) > 1 and best[1][1].candidate.worker_id == best[0][1].candidate.worker_id:
                del best[1]  # ranks of one worker are read in one place
            del best[2:]

    def credit(self, seats: Mapping[int, Seat]) -> Iterator[Candidate]:
        """Set ``overlap.remote_blocks`` of all who could read something, and yield them."""
        if not self._best:
            return
        shared: dict[int, Overlap] = {}  # of those that hold nothing themselves: often most of them
        for seat in seats.values():
            gain = self._gain(seat)
            if gain is None:
                continue
            candidate, num_blocks = seat.candidate, gain[1]
            if candidate.overlap is NO_OVERLAP:
                if num_blocks not in shared:
                    shared[num_blocks] = Overlap(remote_blocks=num_blocks)
                candidate.overlap = shared[num_blocks]
            else:
                num_blocks += candidate.overlap.remote_blocks
                candidate.overlap = msgspec.structs.replace(candidate.overlap, remote_blocks=num_blocks)
            yield candidate

    def source(self, seat: Seat) -> tuple[WorkerId, int] | None:
        """Whom ``seat`` should ask, and how many leading blocks are there. After ``credit``, too."""
        for readable_blocks, other in self._best.get(seat.sharing, ()):
            if other.candidate.worker_id != seat.candidate.worker_id:
                own_blocks = seat.candidate.overlap.num_blocks - seat.candidate.overlap.remote_blocks
                is_more = readable_blocks >= own_blocks + MIN_GAIN_BLOCKS
                return (other.candidate.worker_id, readable_blocks) if is_more else None
        return None

    def _gain(self, seat: Seat) -> tuple[WorkerId, int] | None:
        """Whom to ask, and how many blocks that would add."""
        found = self.source(seat)
        if found is None:
            return None
        overlap = seat.candidate.overlap
        num_more = found[1] - overlap.num_blocks
        return (found[0], num_more) if num_more > 0 else None
