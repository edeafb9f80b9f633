"""Engine checks: KV events, metrics and embeddings, where the engine has them."""

from __future__ import annotations

import math

from dynamo_sdk.errors import DynamoError, InvalidRequest
from dynamo_sdk.interfaces import Embeds, Engine, PublishesKVEvents, PublishesMetrics
from dynamo_sdk.types import (
    NO_TOKENS,
    BlocksRemoved,
    BlocksStored,
    EmbedRequest,
    ForwardPassMetrics,
    KVEventBatch,
    KVTier,
    pack_tokens,
)

from .engine_bench import EngineBench
from .report import CheckFailed, NotApplicable, require
from .streams import generate_request, read_all

_Held = dict[int, set[tuple[KVTier, int | bytes]]]


async def kv_events_have_no_gap(bench: EngineBench) -> None:
    """Batches count up from 0 without a gap, per data-parallel rank."""
    _, batches = await _record_events(bench)
    next_of_rank: dict[int, int] = {}
    for batch in batches:
        expected = next_of_rank.get(batch.dp_rank, 0)
        require(batch.sequence == expected, f"batch {batch.sequence} came where {expected} was due")
        next_of_rank[batch.dp_rank] = expected + 1


async def kv_events_name_parents_first(bench: EngineBench) -> None:
    """A stored block's parent is stored already; a removed block was stored; tokens fill whole blocks."""
    _, batches = await _record_events(bench)
    require(bool(batches), "no event came though blocks were filled")
    _replay(batches)


async def kv_snapshot_equals_the_events(bench: EngineBench) -> None:
    """``kv_snapshot`` rebuilds what all events together have built, up to the same sequence number."""
    snapshot, batches = await _record_events(bench)
    require(_replay(snapshot) == _replay(batches), "the snapshot holds other blocks than the events left")
    last = {batch.dp_rank: batch.sequence for batch in batches}
    for batch in snapshot:
        require(
            batch.sequence == last.get(batch.dp_rank, batch.sequence),
            f"the snapshot has sequence {batch.sequence}, the last event {last.get(batch.dp_rank)}",
        )


async def metrics_count_steps(bench: EngineBench) -> None:
    """Each forward pass is reported once, in order, and the passes add up to the tokens of the prompt."""
    engine = bench.new_engine()
    if not isinstance(engine, PublishesMetrics):
        raise NotApplicable("the engine publishes no metrics")
    seen: list[ForwardPassMetrics] = []
    try:
        await engine.start()
        engine.subscribe_metrics(seen.append)
        await read_all(engine, bench.greedy(num_tokens=5))
    finally:
        await engine.close()
    require(bool(seen), "no forward pass was reported")
    steps = [metrics.step for metrics in seen]
    require(steps == sorted(set(steps)), f"steps came as {steps}")
    require(all(metrics.wall_s >= 0 for metrics in seen), "a step took less than no time")
    num_prefilled = sum(metrics.num_prefill_tokens for metrics in seen)
    require(num_prefilled >= 12, f"a prompt of 12 tokens was prefilled in {num_prefilled}")


async def embeddings_have_length_one(bench: EngineBench) -> None:
    """Vectors are L2-normalised, all of one size, and equal for equal prompts."""
    engine = await bench.any_engine()
    if not isinstance(engine, Embeds):
        raise NotApplicable("the engine does not embed")
    outputs = [
        await engine.embed(
            EmbedRequest(
                request_id=f"embed-{number}", model="model", prompt=pack_tokens(bench.prompt(seed, 9))
            )
        )
        for number, seed in enumerate((1, 2, 1))
    ]
    for output in outputs:
        norm = math.sqrt(math.fsum(value * value for value in output.vector))
        require(abs(norm - 1) < 1e-3, f"a vector has the length {norm}")
        require(output.num_prompt_tokens == 9, f"{output.num_prompt_tokens} prompt tokens counted of 9")
    require(len({len(output.vector) for output in outputs}) == 1, "vectors differ in size")
    furthest = max(abs(a - b) for a, b in zip(outputs[0].vector, outputs[2].vector, strict=True))
    require(furthest < 1e-3, f"two vectors of one prompt differ by {furthest}")


async def empty_embedding_is_refused(bench: EngineBench) -> None:
    """Embedding a prompt without tokens raises ``InvalidRequest``."""
    engine = await bench.any_engine()
    if not isinstance(engine, Embeds):
        raise NotApplicable("the engine does not embed")
    try:
        await engine.embed(EmbedRequest(request_id="empty", model="model", prompt=NO_TOKENS))
    except InvalidRequest:
        return
    except DynamoError as error:
        raise CheckFailed(f"an empty prompt raised {type(error).__name__}, not InvalidRequest") from error
    raise CheckFailed("an empty prompt was embedded")


async def _record_events(bench: EngineBench) -> tuple[tuple[KVEventBatch, ...], list[KVEventBatch]]:
    """The snapshot and all events of a new engine, after requests that share a prefix."""
    engine: Engine = bench.new_engine()
    if not isinstance(engine, PublishesKVEvents):
        raise NotApplicable("the engine publishes no KV events")
    batches: list[KVEventBatch] = []
    try:
        facts = await engine.start()
        engine.subscribe_kv_events(batches.append)
        length = min(4 * (facts.block_size or 16) + 3, facts.context_length // 2)
        shared = bench.prompt(1, length)
        for seed in range(3):
            await read_all(engine, generate_request([*shared, *bench.prompt(seed, length // 2)]))
        return engine.kv_snapshot(), batches
    finally:
        await engine.close()


def _replay(batches: tuple[KVEventBatch, ...] | list[KVEventBatch]) -> _Held:
    """What is held after ``batches``, per rank; fails the check where they contradict themselves."""
    held: _Held = {}
    for batch in batches:
        blocks = held.setdefault(batch.dp_rank, set())
        for event in batch.events:
            if isinstance(event, BlocksStored):
                num_tokens = len(event.block_hashes) * event.block_size
                require(
                    len(event.token_ids) == num_tokens,
                    f"{len(event.block_hashes)} blocks came with {len(event.token_ids)} tokens, "
                    f"not {num_tokens}",
                )
                known = {block_hash for _, block_hash in blocks}
                require(
                    event.parent_hash is None or event.parent_hash in known,
                    f"block {event.block_hashes[0]!r} came before its parent {event.parent_hash!r}",
                )
                blocks.update((event.tier, block_hash) for block_hash in event.block_hashes)
            elif isinstance(event, BlocksRemoved):
                for block_hash in event.block_hashes:
                    require(
                        (event.tier, block_hash) in blocks, f"block {block_hash!r} was removed, never stored"
                    )
                    blocks.remove((event.tier, block_hash))
            else:
                blocks.clear()
    return {rank: blocks for rank, blocks in held.items() if blocks}


FEED_CHECKS = (
    kv_events_have_no_gap,
    kv_events_name_parents_first,
    kv_snapshot_equals_the_events,
    metrics_count_steps,
    embeddings_have_length_one,
    empty_embedding_is_refused,
)
