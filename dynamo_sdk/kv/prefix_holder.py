"""``Holder``: one tier of one seat, and how it finds its blocks by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynamo_sdk.types.kv_events import KVTier

if TYPE_CHECKING:
    from .prefix_run import Run

_MIN_RECENT_RUNS = 32
_MAX_RECENT_RUNS = 4096


class Holder:
    """One tier of one seat; ``number`` is its bit in sets of holders.

    ``runs``: those of which it holds something. ``ends``: most of them by the name of the last block it holds
    there, since engines nearly always continue or evict a sequence at its end; a hint, to be checked.
    """

    __slots__ = ("_archive", "_recent", "bit", "ends", "num_blocks", "number", "runs", "seat", "tier")

    def __init__(self, number: int, seat: int, tier: KVTier) -> None:
        self.number = number
        self.bit = 1 << number
        self.seat = seat
        self.tier = tier
        self.runs: set[Run] = set()
        self.ends: dict[int, Run] = {}
        self.num_blocks = 0
        self._recent: list[Run] | None = []
        self._archive = _Archive([], self)

    def find(self, name: int) -> tuple[Run, int] | None:
        """The run and the offset in it of the block of this name; None = not held."""
        run = self.ends.get(name)
        if run is not None:
            offset = run.held(self).bit_length() - 1
            if offset >= 0 and run.names_of(self)[offset] == name:
                return run, offset
        return self._search(name) if self.runs else None

    def move_end(self, run: Run, old: int | None, new: int | None) -> None:
        """The last block that it holds of ``run`` has another name; None = it holds nothing there."""
        ends = self.ends
        if old is not None and ends.get(old) is run:
            del ends[old]
        if new is not None:
            ends[new] = run

    def note(self, run: Run) -> None:
        """``run`` has names of ours in it that it did not have."""
        recent = self._recent
        if recent is not None and (not recent or recent[-1] is not run):
            recent.append(run)
            if len(recent) > _MAX_RECENT_RUNS:
                self._recent = None  # nobody has searched for long: read all runs when somebody does

    def _search(self, name: int) -> tuple[Run, int] | None:
        """In the middle of runs: those that changed lately one by one, then all others in one array."""
        recent = self._recent
        if recent is None or len(recent) > max(_MIN_RECENT_RUNS, len(self.runs) // 16):
            self._archive = _Archive(list(self.runs), self)
            recent = self._recent = []
        for run in recent:
            if (offset := self._offset_in(run, name)) is not None:
                return run, offset
        for run in self._archive.runs_with(name):
            if (offset := self._offset_in(run, name)) is not None:
                return run, offset
        return None

    def _offset_in(self, run: Run, name: int) -> int | None:
        held = run.held(self)
        if held:
            for offset in np.flatnonzero(np.frombuffer(run.names_of(self), np.uint64) == name).tolist():
                if held >> offset & 1:
                    return int(offset)
        return None

    def forget_all(self) -> None:
        """For whoever has just taken everything from it."""
        self._recent = []
        self._archive = _Archive([], self)


class _Archive:
    """The names of many runs in one array, as they were when it was made."""

    __slots__ = ("_ends", "_names", "_runs")

    def __init__(self, runs: list[Run], holder: Holder) -> None:
        self._runs = runs
        self._names: npt.NDArray[np.uint64] = np.concatenate(
            [np.empty(0, np.uint64), *(np.frombuffer(run.names_of(holder), np.uint64) for run in runs)]
        )
        self._ends = np.cumsum([len(run.keys) for run in runs], dtype=np.int64)

    def runs_with(self, name: int) -> list[Run]:
        """Runs that had a block of this name."""
        places = np.flatnonzero(self._names == name)
        return [self._runs[at] for at in np.searchsorted(self._ends, places, side="right").tolist()]
