"""Engine checks: what an engine says about its KV blocks."""

from __future__ import annotations

from dynamo_sdk.interfaces import EngineFacts, PublishesKVEvents
from dynamo_sdk.types import BlocksRemoved, BlocksStored, KVEventBatch, KVTier

from .engine_bench import EngineBench
from .kv_recording import KVRecording, held_at_the_end
from .report import NotApplicable, require
from .streams import generate_request, read_all

_MOST_TOKENS_TO_FILL = 16_384


async def kv_events_have_no_gap(bench: EngineBench) -> None:
    """Batches count up from 0 without a gap, per data-parallel rank.

    That is how a reader sees that it has missed one. Number a batch when it is made; when a batch of the
    engine was lost, begin a new stream instead of counting on.
    """
    recording = await _record(bench)
    next_of_rank: dict[int, int] = {}
    for batch in recording.batches:
        expected = next_of_rank.get(batch.dp_rank, 0)
        require(batch.sequence == expected, f"batch {batch.sequence} came where {expected} was due")
        next_of_rank[batch.dp_rank] = expected + 1


async def kv_events_speak_of_real_blocks(bench: EngineBench) -> None:
    """Events bear a rank below ``dp_size``, and blocks the engine's ``block_size``, with all their tokens.

    Routers hash ``token_ids`` in blocks of this size; another size matches no prompt ever. Report only full
    blocks, and the rank's own number.
    """
    recording = await _record(bench)
    facts = recording.facts
    require(bool(recording.batches), "no event came though blocks were filled")
    for batch in (*recording.batches, *recording.snapshot):
        require(
            0 <= batch.dp_rank < facts.dp_size, f"an event of rank {batch.dp_rank}, there are {facts.dp_size}"
        )
        for event in batch.events:
            if not isinstance(event, BlocksStored):
                continue
            require(
                facts.block_size in (None, event.block_size),
                f"a block of {event.block_size} tokens, start() said {facts.block_size}",
            )
            num_tokens = len(event.block_hashes) * event.block_size
            require(
                len(event.token_ids) == num_tokens,
                f"{len(event.block_hashes)} blocks came with {len(event.token_ids)} tokens, not {num_tokens}",
            )


async def kv_events_name_parents_first(bench: EngineBench) -> None:
    """A stored block's parent is stored already.

    An index hangs blocks below their parents, and drops what it cannot place. Announce a sequence's blocks
    from its beginning on.
    """
    for batch, event, held in (await _record(bench)).told():
        if isinstance(event, BlocksStored) and event.parent_hash is not None:
            known = {block_hash for _, block_hash in held}
            require(
                event.parent_hash in known,
                f"batch {batch.sequence}: block {event.block_hashes[0]!r} came before its parent "
                f"{event.parent_hash!r}",
            )


async def kv_events_remove_what_was_stored(bench: EngineBench) -> None:
    """A block is removed from a tier in which it is.

    Anything else means that an event was lost or doubled. Announce each eviction once, where it happens.
    """
    for batch, event, held in (await _record(bench)).told():
        if isinstance(event, BlocksRemoved):
            for block_hash in event.block_hashes:
                require(
                    (event.tier, block_hash) in held,
                    f"batch {batch.sequence}: block {block_hash!r} was removed from {event.tier}, "
                    "where it was not",
                )


async def kv_events_announce_evictions(bench: EngineBench) -> None:
    """However much was computed, no more blocks are said to be on the device than it has.

    A block that was reused and not removed attracts requests that find nothing. Announce the removal when
    a block gets new content.
    """
    recording = await _record(bench, is_filling=True)
    assert recording.facts.num_blocks is not None
    for rank, held in held_at_the_end(recording.batches).items():
        num_held = sum(tier is KVTier.DEVICE for tier, _ in held)
        require(
            num_held <= recording.facts.num_blocks,
            f"rank {rank} is said to hold {num_held} blocks, it has {recording.facts.num_blocks}",
        )


async def kv_events_follow_moves(bench: EngineBench) -> None:
    """A block comes into host memory or onto disk from a tier that has it then.

    KV is computed on the device only. Announce the copy before the removal of the original, or both in one
    batch, so that no reader believes for a moment that the block is gone.
    """
    recording = await _record(bench)
    tiers = {
        event.tier
        for batch in recording.batches
        for event in batch.events
        if isinstance(event, BlocksStored | BlocksRemoved)
    }
    if tiers <= {KVTier.DEVICE}:
        raise NotApplicable("the engine speaks of one tier only")
    gone_in: dict[tuple[int, int | bytes], int] = {}
    for batch, event, held in recording.told():
        if isinstance(event, BlocksRemoved):
            gone_in |= {(batch.dp_rank, block_hash): batch.sequence for block_hash in event.block_hashes}
        elif isinstance(event, BlocksStored) and event.tier in (KVTier.HOST, KVTier.DISK):
            known = {block_hash for _, block_hash in held}
            for block_hash in event.block_hashes:
                is_moved_now = gone_in.get((batch.dp_rank, block_hash)) == batch.sequence
                require(
                    block_hash in known or is_moved_now,
                    f"batch {batch.sequence}: block {block_hash!r} came to {event.tier} from nowhere",
                )


async def kv_snapshot_equals_the_events(bench: EngineBench) -> None:
    """``kv_snapshot`` rebuilds what all events together have built, up to the same sequence number.

    A reader that has missed a batch goes on from there. Make the snapshot and its number in one go, with
    nothing published in between.
    """
    recording = await _record(bench)
    from_snapshot, from_events = (
        held_at_the_end(recording.snapshot),
        held_at_the_end(recording.batches),
    )
    require(from_snapshot == from_events, "the snapshot holds other blocks than the events left")
    last = {batch.dp_rank: batch.sequence for batch in recording.batches}
    for batch in recording.snapshot:
        require(
            batch.sequence == last.get(batch.dp_rank, batch.sequence),
            f"the snapshot has sequence {batch.sequence}, the last event {last.get(batch.dp_rank)}",
        )


async def _record(bench: EngineBench, *, is_filling: bool = False) -> KVRecording:
    """What a new engine says, recorded once for all checks. ``is_filling``: while more tokens come than its
    cache holds."""
    kept = bench.kv_recordings.get(is_filling)
    if kept is not None:
        return kept
    batches: list[KVEventBatch] = []
    async with bench.own_engine() as (engine, facts):
        if not isinstance(engine, PublishesKVEvents):
            raise NotApplicable("the engine publishes no KV events")
        engine.subscribe_kv_events(batches.append)
        for prompt in _filling(bench, facts) if is_filling else _sharing(bench, facts):
            await read_all(engine, generate_request(prompt))
        recording = KVRecording(facts, tuple(batches), engine.kv_snapshot())
    bench.kv_recordings[is_filling] = recording
    return recording


def _sharing(bench: EngineBench, facts: EngineFacts) -> list[list[int]]:
    """Prompts of some blocks, the first four of which are the same."""
    length = min(4 * (facts.block_size or 16) + 3, facts.context_length // 2)
    shared = bench.prompt(1, length)
    return [[*shared, *bench.prompt(seed, length // 2)] for seed in range(3)]


def _filling(bench: EngineBench, facts: EngineFacts) -> list[list[int]]:
    """Prompts that share nothing, together twice what the cache holds."""
    if facts.num_blocks is None or facts.block_size is None:
        raise NotApplicable("the engine does not say how many blocks it has")
    num_tokens = facts.num_blocks * facts.block_size
    if num_tokens > _MOST_TOKENS_TO_FILL:
        raise NotApplicable(
            f"filling {facts.num_blocks} blocks of {facts.block_size} tokens takes too long here; "
            "check an engine with fewer"
        )
    length = max(1, min(facts.context_length // 2, num_tokens // 3))
    return [bench.prompt(seed, length) for seed in range(2 * num_tokens // length)]


KV_EVENT_CHECKS = (
    kv_events_have_no_gap,
    kv_events_speak_of_real_blocks,
    kv_events_name_parents_first,
    kv_events_remove_what_was_stored,
    kv_events_announce_evictions,
    kv_events_follow_moves,
    kv_snapshot_equals_the_events,
)
