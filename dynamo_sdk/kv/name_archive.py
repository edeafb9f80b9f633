"""``NameArchive``: where blocks in the middle of runs are, by their names.

Sorted arrays in the place of a dictionary: 16 bytes per name instead of about a hundred. New names come as a
level of their own, and levels of similar size are merged: a name is sorted again about ``log2`` times.

What it says is a hint. A run that was cut since keeps its last part, and what was cut off is above it; the
position of a block in its sequence never changes, and tells how far above.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .prefix_holder import Holder
    from .prefix_run import Run


class NameArchive:
    def __init__(self) -> None:
        self._levels: list[_Level] = []

    @property
    def num_names(self) -> int:
        """Including those that mean nothing any more."""
        return sum(len(level.names) for level in self._levels)

    def add(self, runs: Sequence[Run], holder: Holder) -> None:
        """Note the names that ``holder`` has for the blocks of ``runs``."""
        if not runs:
            return
        lengths = [len(run.keys) for run in runs]
        starts = np.repeat([run.start for run in runs], lengths)
        level = _Level(
            np.concatenate([np.frombuffer(run.names_of(holder), np.uint64) for run in runs]),
            np.repeat(np.arange(len(runs), dtype=np.uint32), lengths),
            (starts + _offsets(lengths)).astype(np.uint32),
            list(runs),
        )
        levels = self._levels
        while levels and len(levels[-1].names) < 2 * len(level.names):
            level = levels.pop().merged_with(level)
        levels.append(level)

    def places(self, name: int) -> Iterator[tuple[Run, int]]:
        """Runs and offsets at which the block of this name may be, the latest first."""
        for level in reversed(self._levels):
            at = bisect_left(level.view, name)
            while at < len(level.view) and level.view[at] == name:
                run: Run | None = level.runs[level.run_numbers.item(at)]
                position = level.positions.item(at)
                while run is not None and run.start > position:
                    run = run.parent
                if run is not None:
                    yield run, position - run.start
                at += 1


class _Level:
    """Names in order; for each, the number of its run in ``runs`` and its position in the sequence."""

    __slots__ = ("names", "positions", "run_numbers", "runs", "view")

    def __init__(
        self,
        names: npt.NDArray[np.uint64],
        run_numbers: npt.NDArray[np.uint32],
        positions: npt.NDArray[np.uint32],
        runs: list[Run],
    ) -> None:
        order = np.argsort(names)
        self.names = names[order]
        self.run_numbers = run_numbers[order]
        self.positions = positions[order]
        self.runs = runs
        self.view = self.names.data

    def merged_with(self, other: _Level) -> _Level:
        return _Level(
            np.concatenate([self.names, other.names]),
            np.concatenate([self.run_numbers, other.run_numbers + np.uint32(len(self.runs))]),
            np.concatenate([self.positions, other.positions]),
            self.runs + other.runs,
        )


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """0, 1, 2 and so on, from the beginning again for each of ``lengths``."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
