"""``Run``: consecutive blocks of one prefix, and who holds which of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from .prefix_holder import Holder


class Run:
    """Blocks without a fork between them: an edge of a compressed radix tree.

    A holder's part of it is a bitmap, bit ``i`` for block ``i``. Who holds all of it is a bit in ``full``,
    anybody else has a non-zero bitmap in ``partial``; both are by holder number. ``names`` are the engines'
    names of the blocks, as its first holder said them; who says others has an array in ``own_names``.
    """

    __slots__ = ("full", "keys", "names", "num_children", "own_names", "parent", "partial", "start")

    def __init__(self, start: int, keys: array[int], names: array[int], parent: Run | None) -> None:
        self.start = start
        self.keys = keys
        self.names = names
        self.parent = parent
        self.num_children = 0
        self.full = 0
        self.partial: dict[int, int] = {}
        self.own_names: dict[int, array[int]] | None = None

    def held(self, holder: Holder) -> int:
        """The bitmap of what ``holder`` has here."""
        if self.full & holder.bit:
            return (1 << len(self.keys)) - 1
        return self.partial.get(holder.number, 0)

    def num_held(self, holder: Holder) -> int:
        """The length of the bitmap: one more than the offset of the last block that ``holder`` has here."""
        if self.full & holder.bit:
            return len(self.keys)
        return self.partial.get(holder.number, 0).bit_length()

    def names_of(self, holder: Holder) -> array[int]:
        """Names by offset; those of blocks that ``holder`` does not hold mean nothing."""
        if self.own_names is None:
            return self.names
        return self.own_names.get(holder.number, self.names)

    def set_held(self, holder: Holder, held: int) -> None:
        if held == (1 << len(self.keys)) - 1:
            self.full |= holder.bit
            self.partial.pop(holder.number, None)
            return
        self.full &= ~holder.bit
        if held:
            self.partial[holder.number] = held
            return
        self.partial.pop(holder.number, None)
        if self.own_names is not None:
            self.own_names.pop(holder.number, None)
            self.own_names = self.own_names or None

    def rename(self, holder: Holder, at: int, names: array[int]) -> None:
        """From offset ``at`` on, ``holder`` has these names."""
        if self.own_names is None:
            self.own_names = {}
        own = self.own_names.get(holder.number)
        if own is None:
            own = self.own_names[holder.number] = self.names[:]
        own[at : at + len(names)] = names

    def num_equal(self, at: int, keys: Sequence[int], start: int) -> int:
        """How many blocks from offset ``at`` on have the keys from ``keys[start]`` on."""
        ours = self.keys
        low, high = 0, min(len(ours) - at, len(keys) - start)
        if high and ours[at + high - 1] == keys[start + high - 1]:
            return high  # equal at the end means equal all along
        while low < high:
            middle = (low + high) // 2
            if ours[at + middle] == keys[start + middle]:
                low = middle + 1
            else:
                high = middle
        return low

    def has_same_holders(self, other: Run) -> bool:
        """Both are held as a whole, by the same."""
        return self.full == other.full and not (self.partial or other.partial)

    def prepend(self, run: Run) -> None:
        """Take over ``run``, which comes before and has the same holders; it is left empty-handed."""
        own: dict[int, array[int]] = {}
        for number in {*(run.own_names or ()), *(self.own_names or ())}:
            first = (run.own_names or {}).get(number, run.names)
            own[number] = first + (self.own_names or {}).get(number, self.names)
        self.own_names = own or None
        self.keys = run.keys + self.keys
        self.names = run.names + self.names
        self.start = run.start
        self.parent = run.parent
        run.full = 0
        run.own_names = None

    def cut(self, length: int) -> None:
        """Forget the blocks from offset ``length`` on, which nobody holds."""
        for blocks in (self.keys, self.names, *(self.own_names or {}).values()):
            del blocks[length:]
        everything = (1 << length) - 1
        for number in [number for number, held in self.partial.items() if held == everything]:
            self.full |= 1 << number
            del self.partial[number]

    def drop_first(self, count: int) -> None:
        """Begin ``count`` blocks later. Bitmaps are the caller's to set anew."""
        for blocks in (self.keys, self.names, *(self.own_names or {}).values()):
            del blocks[:count]
        self.start += count

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests."""
        length = len(self.keys)
        everything = (1 << length) - 1
        assert length > 0
        assert len(self.names) == length
        assert all(0 < held < everything for held in self.partial.values()), "a part is no part"
        assert not any(self.full >> number & 1 for number in self.partial), "held in full and in part"
        for number, own in (self.own_names or {}).items():
            assert len(own) == length
            assert self.full >> number & 1 or number in self.partial, "names of nobody"
        if not self.num_children and not self.full:
            assert max(held.bit_length() for held in self.partial.values()) == length, "an end nobody holds"
