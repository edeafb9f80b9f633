"""What one seat holds in a ``PrefixTree``, as digests that build it again elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dynamo_sdk.types.kv_events import KVDigest, RemovedDigest, StoredDigest

from .prefix_holder import Holder
from .prefix_keys import hashes_of_keys, pack_words
from .prefix_run import Run

_WORD_BYTES = 8


def take_snapshot(holders: Sequence[Holder]) -> tuple[KVDigest, ...]:
    """Of the tiers of one seat.

    Blocks after a hole can only be placed if the hole is filled: by the first holder, under the names that
    the tree still has there. What it filled it removes in the end.
    """
    digests: list[KVDigest] = []
    fillings: list[int] = []
    last_names: dict[Run, int] = {}  # the name of the block at the end of each run, for what follows it
    for run, length in _lengths(holders):
        first_key = run.parent.keys[-1] if run.parent is not None else 0
        hashes = hashes_of_keys(run.keys[:length], key=first_key, position=run.start)
        names = run.names_of(holders[0])[:length]
        holes = (1 << length) - 1
        pieces: list[tuple[int, int, Holder]] = []
        for holder in holders:
            held, own = run.held(holder), run.names_of(holder)
            holes &= ~held
            for first, end in _stretches(held):
                names[first:end] = own[first:end]
                pieces.append((first, end, holder))
        for first, end in _stretches(holes):
            fillings += names[first:end]
            pieces.append((first, end, holders[0]))
        before = last_names[run.parent] if run.parent is not None else None
        for first, end, holder in sorted(pieces, key=lambda piece: piece[0]):
            is_held = run.held(holder) >> first & 1
            digests.append(
                StoredDigest(
                    names=pack_words((run.names_of(holder) if is_held else names)[first:end]),
                    hashes=hashes[first * _WORD_BYTES : end * _WORD_BYTES],
                    parent=names[first - 1] if first else before,
                    tier=holder.tier,
                )
            )
        last_names[run] = names[-1]
    if fillings:
        digests.append(RemovedDigest(names=pack_words(fillings), tier=holders[0].tier))
    return tuple(digests)


def _lengths(holders: Sequence[Holder]) -> list[tuple[Run, int]]:
    """The runs of which these hold something, and those that lead there; each with how much of it is
    needed. Parents first."""
    lengths: dict[Run, int] = {}
    for holder in holders:
        for run in holder.runs:
            lengths[run] = max(lengths.get(run, 0), run.num_held(holder))
            above = run.parent
            while above is not None and lengths.get(above) != len(above.keys):
                lengths[above] = len(above.keys)
                above = above.parent
    return sorted(lengths.items(), key=lambda item: item[0].start)


def _stretches(held: int) -> Iterator[tuple[int, int]]:
    """First and end (half-open) of each row of bits that are set."""
    first = 0
    while held:
        num_clear = (held & -held).bit_length() - 1
        held >>= num_clear
        num_set = (~held & (held + 1)).bit_length() - 1
        held >>= num_set
        yield first + num_clear, first + num_clear + num_set
        first += num_clear + num_set
