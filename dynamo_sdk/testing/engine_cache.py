"""Engine checks: what is found in the prefix cache, and what must not be."""

from __future__ import annotations

import msgspec

from dynamo_sdk.errors import RequestError
from dynamo_sdk.interfaces import Engine, PublishesKVEvents
from dynamo_sdk.types import GenerateRequest, KVEventBatch

from .engine_bench import EngineBench, greedy
from .report import CheckFailed, NotApplicable, require
from .streams import generate_request, read_all

_NUM_BLOCKS = 4


async def prefix_hit_is_reported(bench: EngineBench) -> None:
    """When a prompt comes again, ``usage.num_cached_tokens`` says how much of it was found: whole blocks,
    and nothing the first time.

    Hit rates, prices and the router's knowledge of the cache come from this number. Report what was found
    before the first step, not what was stored by its end.
    """
    request = await _long_request(bench, seed=1031)
    engine = await bench.any_engine()
    said: list[KVEventBatch] = []
    if isinstance(engine, PublishesKVEvents):
        engine.subscribe_kv_events(said.append)
    first, again = await _num_cached(engine, request), await _num_cached(engine, request)
    if not again and not said:
        raise NotApplicable("neither usage nor KV events speak of a prefix cache")
    require(first == 0, f"{first} tokens of a prompt that never came before were cached")
    require(again > 0, "blocks were stored, and none of them was found the second time")
    require(
        again <= request.num_prompt_tokens,
        f"{again} of {request.num_prompt_tokens} tokens were cached",
    )


async def cache_salt_keeps_prompts_apart(bench: EngineBench) -> None:
    """Blocks are found again under the same ``cache_salt`` only.

    Without that, one tenant could time whether another has asked something. Make the salt part of the first
    block's hash.
    """
    request = await _long_request(bench, seed=1032)
    await _require_cache(bench)
    engine = await bench.any_engine()
    ours = msgspec.structs.replace(request, cache_salt="ours")
    await read_all(engine, _another(ours))
    for salt in ("theirs", None):
        theirs = msgspec.structs.replace(request, cache_salt=salt)
        found = await _num_cached(engine, theirs)
        require(found == 0, f"under the salt {salt!r} {found} tokens of the salt 'ours' were found")
    again = await _num_cached(engine, ours)
    require(again > 0, "nothing was found under the same salt")


async def lora_is_refused_or_kept_apart(bench: EngineBench) -> None:
    """A request for an adapter that nobody claimed is refused (``InvalidRequest``, ``ModelNotFound``), or at
    least not answered from the base model's cache.

    Answering with the base model is a wrong answer that looks right. Look the adapter up before the request
    is queued, and make its name part of the first block's hash.
    """
    request = await _long_request(bench, seed=1033)
    engine = await bench.any_engine()
    base = (await read_all(engine, _another(request))).token_ids
    adapted = msgspec.structs.replace(request, lora="an-adapter-that-is-not-there")
    try:
        answer = await read_all(engine, _another(adapted))
    except RequestError:
        return
    num_cached = answer.usage.num_cached_tokens if answer.usage else 0
    require(num_cached == 0, f"{num_cached} tokens of the base model's KV were used for an adapter")
    if answer.token_ids == base and await _num_cached(engine, request) == 0:
        raise CheckFailed("an adapter that is not there was answered with the base model's tokens")


async def _long_request(bench: EngineBench, *, seed: int) -> GenerateRequest:
    """One whose prompt fills some blocks and a bit, always for the same rank."""
    facts = await bench.facts(bench.whole_role)
    num_tokens = min(_NUM_BLOCKS * (facts.block_size or 16) + 3, facts.context_length // 2)
    request = generate_request(bench.prompt(seed, num_tokens), greedy(4))
    return request if facts.dp_size == 1 else msgspec.structs.replace(request, dp_rank=0)


def _another(request: GenerateRequest) -> GenerateRequest:
    """The same under an id of its own."""
    return msgspec.structs.replace(request, request_id=generate_request().request_id)


async def _require_cache(bench: EngineBench) -> None:
    request = await _long_request(bench, seed=1035)
    engine = await bench.any_engine()
    await read_all(engine, _another(request))
    if not await _num_cached(engine, request):
        raise NotApplicable("the engine finds nothing in a prefix cache")


async def _num_cached(engine: Engine, request: GenerateRequest) -> int:
    """Of one more request like this one."""
    usage = (await read_all(engine, _another(request))).usage
    if usage is None:
        raise CheckFailed("the last chunk has no usage")
    return usage.num_cached_tokens


CACHE_CHECKS = (
    prefix_hit_is_reported,
    cache_salt_keeps_prompts_apart,
    lora_is_refused_or_kept_apart,
)
