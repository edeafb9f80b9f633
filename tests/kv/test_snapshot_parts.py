from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.kv import PrefixIndex
from dynamo_sdk.kv.prefix_keys import pack_words
from dynamo_sdk.kv.snapshot_parts import cut_snapshot
from dynamo_sdk.types import KVDigest, RemovedDigest, StoredDigest

HEADER_BYTES = 128  # of a batch, beside its digests


@given(
    lengths=st.lists(st.integers(1, 60), max_size=6),
    removed=st.integers(0, 40),
    max_bytes=st.integers(80, 400),
)
def test_parts_build_what_the_whole_builds_and_none_is_too_large(
    lengths: list[int], removed: int, max_bytes: int
) -> None:
    digests: list[KVDigest] = []
    first = 0
    for length in lengths:  # each continues the one before
        names = pack_words(range(first, first + length))
        digests.append(StoredDigest(names=names, hashes=names, parent=first - 1 if first else None))
        first += length
    if num_removed := min(removed, first):
        digests.append(RemovedDigest(names=pack_words(range(first - num_removed, first))))
    parts = cut_snapshot(5, 2, digests, max_bytes=max_bytes)
    assert [(batch.part, batch.num_parts) for batch in parts] == [(i, len(parts)) for i in range(len(parts))]
    assert all(batch.is_snapshot and batch.sequence == 5 and batch.dp_rank == 2 for batch in parts)
    assert all(len(msgspec.msgpack.encode(batch)) <= max_bytes + HEADER_BYTES for batch in parts)
    whole, built = PrefixIndex(), PrefixIndex()
    for digest in digests:
        whole.apply(0, digest)
    for batch in parts:
        for digest in batch.digests:
            assert built.apply(0, digest)
    built.check_integrity()
    assert built.snapshot(0) == whole.snapshot(0)


def test_an_empty_snapshot_is_one_part() -> None:
    [part] = cut_snapshot(-1, 0, ())
    assert part.digests == ()
    assert (part.part, part.num_parts) == (0, 1)
