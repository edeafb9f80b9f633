"""A snapshot cut into parts: none is larger than a frame may be, and tokens go out between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dynamo_sdk.types.kv_events import KVDigest, KVDigestBatch, RemovedDigest, StoredDigest

MAX_PART_BYTES = 1 << 20
_WORD_BYTES = 8
_OVERHEAD_BYTES = 64  # of a digest, beside its names and hashes, rounded up


def cut_snapshot(
    sequence: int, dp_rank: int, digests: Iterable[KVDigest], *, max_bytes: int = MAX_PART_BYTES
) -> list[KVDigestBatch]:
    """Batches that are the snapshot together; at least one. ``max_bytes`` of each, once it is encoded."""
    parts: list[list[KVDigest]] = [[]]
    num_bytes = 0
    for digest in digests:
        for piece in _pieces(digest, max_bytes):
            num_piece_bytes = _num_bytes(piece)
            if parts[-1] and num_bytes + num_piece_bytes > max_bytes:
                parts.append([])
                num_bytes = 0
            parts[-1].append(piece)
            num_bytes += num_piece_bytes
    return [
        KVDigestBatch(
            sequence=sequence,
            dp_rank=dp_rank,
            digests=tuple(part),
            is_snapshot=True,
            part=number,
            num_parts=len(parts),
        )
        for number, part in enumerate(parts)
    ]


def _num_bytes(digest: KVDigest) -> int:
    if isinstance(digest, StoredDigest):
        return _OVERHEAD_BYTES + len(digest.names) + len(digest.hashes)
    return _OVERHEAD_BYTES + (len(digest.names) if isinstance(digest, RemovedDigest) else 0)


def _pieces(digest: KVDigest, max_bytes: int) -> Iterator[KVDigest]:
    """The same digest, in several where it is too large for one part."""
    if _num_bytes(digest) <= max_bytes or not isinstance(digest, StoredDigest | RemovedDigest):
        yield digest
        return
    num_words = max(1, (max_bytes - _OVERHEAD_BYTES) // (2 * _WORD_BYTES))
    for first in range(0, len(digest.names), num_words * _WORD_BYTES):
        end = first + num_words * _WORD_BYTES
        if isinstance(digest, RemovedDigest):
            yield RemovedDigest(names=digest.names[first:end], tier=digest.tier)
            continue
        before = digest.names[first - _WORD_BYTES : first]
        yield StoredDigest(
            names=digest.names[first:end],
            hashes=digest.hashes[first:end],
            parent=int.from_bytes(before, "little") if first else digest.parent,
            tier=digest.tier,
        )
