"""``Holder``: one tier of one seat, and how it finds its blocks by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_sdk.types.kv_events import KVTier

from .name_archive import NameArchive

if TYPE_CHECKING:
    from .prefix_run import Run

_MAX_SEARCHED_RUNS = 16
_MAX_RECENT_RUNS = 4096
_MIN_ARCHIVE = 4096


class Holder:
    """One tier of one seat; ``number`` is its bit in sets of holders.

    ``runs``: those of which it holds something. ``ends``: most of them by the name of the last block it holds
    there, since engines nearly always continue or evict a sequence at its end. ``last``: the name, run and
    offset of the block that it stored last. Both are hints, to be checked.
    """

    __slots__ = (
        "_archive",
        "_recent",
        "bit",
        "ends",
        "last",
        "num_blocks",
        "number",
        "runs",
        "seat",
        "tier",
    )

    def __init__(self, number: int, seat: int, tier: KVTier) -> None:
        self.number = number
        self.bit = 1 << number
        self.seat = seat
        self.tier = tier
        self.runs: set[Run] = set()
        self.ends: dict[int, Run] = {}
        self.last: tuple[int, Run | None, int] = (0, None, 0)
        self.num_blocks = 0
        self._recent: list[Run] | None = []
        self._archive = NameArchive()

    def find(self, name: int) -> tuple[Run, int] | None:
        """The run and the offset in it of the block of this name; None = not held."""
        last_name, run, offset = self.last
        if name == last_name and run is not None and self._is_at(run, offset, name):
            return run, offset
        run = self.ends.get(name)
        if run is not None:
            offset = run.num_held(self) - 1
            if self._is_at(run, offset, name):
                return run, offset
        return self._search(name) if self.runs else None

    def _is_at(self, run: Run, offset: int, name: int) -> bool:
        names = run.names_of(self)
        if offset >= len(names) or names[offset] != name:
            return False
        return bool(run.full & self.bit or run.partial.get(self.number, 0) >> offset & 1)

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
        """In the middle of runs: those that changed lately one by one, then all others in the archive."""
        recent = self._recent
        if recent is None or self._archive.num_names > 2 * self.num_blocks + _MIN_ARCHIVE:
            self._archive = NameArchive()
            self._archive.add(list(self.runs), self)
            recent = self._recent = []
        elif len(recent) > _MAX_SEARCHED_RUNS:
            self._archive.add(list(self.runs.intersection(recent)), self)
            recent.clear()
        for run in recent:
            names = run.names_of(self)
            if name in names and self._is_at(run, offset := names.index(name), name):
                return run, offset
        for run, offset in self._archive.places(name):
            if self._is_at(run, offset, name):
                return run, offset
        return None

    def forget_all(self) -> None:
        """For whoever has just taken everything from it."""
        self._recent = []
        self._archive = NameArchive()
        self.last = (0, None, 0)
