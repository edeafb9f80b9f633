"""``PrefixTree``: a compressed radix tree of blocks, by their keys, with holders on every edge.

An edge is a ``Run``. ``heads`` finds each by the key of its first block, which no other block has; so a child
needs no pointer from its parent. A run is cut where a prefix leaves it, grows where its only holder goes on,
and shrinks where nobody holds its end. It stays, held by nobody, as long as something follows it. Cuts that
have lost their reason are undone when a store comes by.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from .prefix_holder import Holder
from .prefix_keys import PrefixKeys
from .prefix_run import Run


class PrefixTree:
    """``holders``: by number; whoever owns the tree fills it. Names come as arrays of 64-bit words."""

    def __init__(self) -> None:
        self.holders: list[Holder | None] = []
        self.heads: dict[int, Run] = {}
        self.num_blocks = 0
        self.num_entries = 0

    def path(self, keys: Sequence[int]) -> list[tuple[Run, int]]:
        """The runs that a prompt goes through, each with the number of its leading blocks that are the
        prompt's."""
        heads = self.heads
        path: list[tuple[Run, int]] = []
        at, num_keys = 0, len(keys)
        while at < num_keys:
            run = heads.get(keys[at])
            if run is None:
                break
            count = run.num_equal(0, keys, at)
            path.append((run, count))
            if count < len(run.keys):
                break
            at += count
        return path

    def put(self, holder: Holder, run: Run | None, end: int, keys: PrefixKeys, names: array[int]) -> None:
        """``holder`` has the blocks ``keys`` after the first ``end`` ones of ``run`` (None: at the start)."""
        num_keys = len(keys)
        done = 0
        while done < num_keys:
            if run is not None and end < len(run.keys):
                count = run.num_equal(end, keys, done)
                if count:
                    self._hold(holder, run, end, names[done : done + count])
                    done, end = done + count, end + count
                    continue
                run = self._split(run, end)
            child = self.heads.get(keys[done])
            if child is not None:
                end = 0
                if run is not None and run.num_children == 1 and run.has_same_holders(child):
                    end = self._join(run, child)
                run = child
                continue
            run = self._add(holder, run, keys[done:] if done else keys, names[done:])
            end = len(run.keys)
            break
        if run is not None and num_keys:
            holder.last = (names[-1], run, end - 1)

    def release(self, holder: Holder, run: Run, bits: int) -> None:
        """``holder`` no longer has those blocks of ``run`` whose bits are set in ``bits``."""
        held = run.held(holder)
        left = held & ~bits
        if left == held:
            return
        num_gone = (held ^ left).bit_count()
        self.num_entries -= num_gone
        holder.num_blocks -= num_gone
        names = run.names_of(holder)
        holder.move_end(run, names[held.bit_length() - 1], names[left.bit_length() - 1] if left else None)
        run.set_held(holder, left)
        if not left:
            holder.runs.discard(run)
        if held.bit_length() == len(run.keys):
            self._trim(run)

    def release_all(self, holder: Holder) -> None:
        for run in list(holder.runs):
            self.release(holder, run, (1 << len(run.keys)) - 1)
        holder.forget_all()

    def _add(self, holder: Holder, run: Run | None, keys: PrefixKeys, names: array[int]) -> Run:
        """New blocks after ``run``: in it when nobody else is concerned, else in a run of their own."""
        if (
            run is not None
            and run.full == holder.bit
            and not (run.num_children or run.partial or run.own_names)
        ):
            holder.move_end(run, run.names[-1], None)
            run.keys.frombytes(keys.tobytes())
            run.names.extend(names)
        else:
            start = 0 if run is None else run.start + len(run.keys)
            if run is not None:
                run.num_children += 1
            run = Run(start, array("Q", keys.tobytes()), names, run)
            run.full = holder.bit
            holder.runs.add(run)
            self.heads[run.keys[0]] = run
        holder.note(run)
        holder.move_end(run, None, run.names[-1])
        self.num_blocks += len(keys)
        self.num_entries += len(keys)
        holder.num_blocks += len(keys)
        return run

    def _hold(self, holder: Holder, run: Run, at: int, names: array[int]) -> None:
        """``holder`` has the blocks from offset ``at`` on, under these names."""
        count = len(names)
        held = run.held(holder)
        more = held | ((1 << count) - 1) << at
        known = run.names_of(holder)
        is_renamed = known[at : at + count] != names
        if more == held and not is_renamed:
            return
        old_end = known[held.bit_length() - 1] if held else None
        if is_renamed:
            run.rename(holder, at, names)
            known = run.names_of(holder)
        run.set_held(holder, more)
        holder.runs.add(run)
        holder.note(run)
        holder.move_end(run, old_end, known[more.bit_length() - 1])
        num_new = (more ^ held).bit_count()
        self.num_entries += num_new
        holder.num_blocks += num_new

    def _trim(self, run: Run | None) -> None:
        """Forget blocks that nobody holds and that nothing follows."""
        while run is not None and not run.num_children and not run.full:
            length = max((held.bit_length() for held in run.partial.values()), default=0)
            if length == len(run.keys):
                return
            self.num_blocks -= len(run.keys) - length
            if length:
                run.cut(length)
                return
            del self.heads[run.keys[0]]
            run = run.parent
            if run is not None:
                run.num_children -= 1

    def _split(self, run: Run, at: int) -> Run:
        """Cut ``run`` before offset ``at``; returns the new run with its first part."""
        upper = Run(run.start, run.keys[:at], run.names[:at], run.parent)
        upper.num_children = 1
        first = (1 << at) - 1
        left: list[tuple[Holder, int]] = []
        for number in [*bits_of(run.full), *run.partial]:
            holder = self.holders[number]
            assert holder is not None
            held = run.held(holder)
            left.append((holder, held >> at))
            if held & first:
                names = run.names_of(holder)
                if names is not run.names:
                    upper.rename(holder, 0, names[:at])
                end = names[(held & first).bit_length() - 1]
                if not held >> at:
                    holder.move_end(run, end, None)
                    holder.runs.discard(run)
                holder.move_end(upper, None, end)
                holder.runs.add(upper)
                holder.note(upper)
                upper.set_held(holder, held & first)
        run.drop_first(at)
        for holder, held in left:
            run.set_held(holder, held)
        run.parent = upper
        self.heads[upper.keys[0]] = upper
        self.heads[run.keys[0]] = run
        return upper

    def _join(self, run: Run, child: Run) -> int:
        """Undo a cut that nothing needs any more: ``child``, which alone follows ``run`` and has the same
        holders, takes it over. Returns how many blocks that are."""
        count = len(run.keys)
        del self.heads[child.keys[0]]
        for number in bits_of(run.full):
            holder = self.holders[number]
            assert holder is not None
            holder.move_end(run, run.names_of(holder)[-1], None)
            holder.runs.discard(run)
            holder.note(child)
        child.prepend(run)
        self.heads[child.keys[0]] = child
        return count

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests; O(entries)."""
        num_children: dict[Run, int] = {}
        holders = [holder for holder in self.holders if holder is not None]
        for first, run in self.heads.items():
            assert run.keys[0] == first, "a run under another's key"
            run.check_integrity()
            assert run.full or run.partial or run.num_children, "nobody needs this run"
            if run.parent is None:
                assert run.start == 0
            else:
                assert self.heads.get(run.parent.keys[0]) is run.parent, "the parent is gone"
                assert run.start == run.parent.start + len(run.parent.keys)
                num_children[run.parent] = num_children.get(run.parent, 0) + 1
            for number in [*bits_of(run.full), *run.partial]:
                holder = self.holders[number]
                assert holder is not None
                assert run in holder.runs, "a holder does not know what it holds"
        for run in self.heads.values():
            assert run.num_children == num_children.get(run, 0)
        for holder in holders:
            assert holder.num_blocks == sum(run.held(holder).bit_count() for run in holder.runs)
            for run in holder.runs:
                assert run.held(holder), "a run that is not held"
                assert self.heads.get(run.keys[0]) is run, "a run that is not there"
            for run in holder.ends.values():
                assert run in holder.runs, "an end of nothing"
        assert self.num_blocks == sum(len(run.keys) for run in self.heads.values())
        assert self.num_entries == sum(holder.num_blocks for holder in holders)


def bits_of(number: int) -> Iterator[int]:
    """The positions of the bits that are set."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
