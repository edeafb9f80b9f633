"""Engine checks: LoRA adapters that are loaded, asked, and unloaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import DynamoError, InvalidRequest, ModelNotFound
from dynamo_sdk.interfaces import AdaptsLora, Engine
from dynamo_sdk.types import GenerateRequest, LoraSpec, Role, SamplingParams

from .engine_bench import EngineBench, require_settled
from .engine_legs import Legs
from .report import CheckFailed, NotApplicable, require
from .streams import Answer, generate_request, read_all

replace = msgspec.structs.replace

_NUM_PROMPT_TOKENS = 67
_NUM_TOKENS = 12
_NOWHERE = "/nonexistent/adapter"


async def unknown_adapters_are_refused(bench: EngineBench) -> None:
    """A request for an adapter that is not loaded raises ``ModelNotFound`` before the first chunk, and so
    does unloading it; a folder without an adapter raises ``InvalidRequest`` and is not served.

    A frontend sends what it knew a moment ago, and the client should read 404, not tokens of the model. Look
    the adapter up before anything else; ``dynamo_sdk.engines.loras.LoraTable`` does.
    """
    engine = await bench.any_engine()
    adapting = _adapting(engine)
    before = engine.load()
    await _require_refused(engine, "never-loaded")
    try:
        await adapting.unload_lora("never-loaded")
    except ModelNotFound:
        pass
    else:
        raise CheckFailed("unloading an adapter that was never loaded raised nothing")
    try:
        await adapting.load_lora(LoraSpec(name="nowhere", path=_NOWHERE))
    except InvalidRequest:
        pass
    else:
        raise CheckFailed(f"{_NOWHERE} was loaded as an adapter")
    require(not adapting.loras(), f"loras() lists {adapting.loras()} though nothing was loaded")
    await _require_refused(engine, "nowhere")
    require_settled(engine, before)


async def adapters_answer_in_their_own_way(bench: EngineBench) -> None:
    """A loaded adapter is listed, its answers are not the model's and the same each time, nothing of the
    model's KV is used for them, and the model answers as before.

    An adapter that is loaded and not applied looks right to everybody. Apply it in prefill and in decode, and
    make its name part of the first block's hash.
    """
    engine = await bench.any_engine()
    request = await _request(bench, seed=1034)
    async with _loaded(bench, engine) as adapters:
        listed = _adapting(engine).loras()
        require(set(listed) == set(adapters), f"loras() lists {listed}, loaded were {adapters}")
        base = await read_all(engine, _another(request))
        for adapter in adapters:
            adapted = replace(request, lora=adapter.name)
            first = await read_all(engine, _another(adapted))
            num_cached = first.usage.num_cached_tokens if first.usage else 0
            require(num_cached == 0, f"{num_cached} tokens of other KV were used for an adapter")
            require(
                _differ(base, first),
                f"with {adapter.path} the engine answers as without it: {first.token_ids}, and the same "
                "logprobs; is it applied, and is it no adapter of zeros?",
            )
            if bench.is_exact:
                again = (await read_all(engine, _another(adapted))).token_ids
                require(again == first.token_ids, f"an adapter gave {first.token_ids}, then {again}")
        if bench.is_exact:
            again = (await read_all(engine, _another(request))).token_ids
            require(
                again == base.token_ids,
                f"the model gave {base.token_ids}, and after an adapter had run {again}",
            )


async def adapters_share_a_batch(bench: EngineBench) -> None:
    """Requests of the model and of all adapters, at the same time, get the answers that each gets alone.

    They share the weights and the step. Apply an adapter to its own rows only.
    """
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    engine = await bench.any_engine()
    async with _loaded(bench, engine) as adapters:
        prompts = [await _request(bench, seed=1040 + seed) for seed in range(3)]
        requests = [
            replace(request, lora=name)
            for request in prompts
            for name in (None, *(adapter.name for adapter in adapters))
        ]
        alone = [(await read_all(engine, _another(request))).token_ids for request in requests]
        together: dict[int, list[int]] = {}

        async def run(number: int) -> None:
            together[number] = (await read_all(engine, _another(requests[number]))).token_ids

        async with anyio.create_task_group() as tasks:
            for number in range(len(requests)):
                tasks.start_soon(run, number)
        for number, request in enumerate(requests):
            require(
                together[number] == alone[number],
                f"{request.lora or 'the model'} gave {alone[number]} alone and {together[number]} in a batch",
            )


async def unloading_lets_requests_end(bench: EngineBench) -> None:
    """``unload_lora`` refuses new requests at once, lets those that run end as they would have, and returns
    after them; then the adapter is refused, and can be loaded again.

    An adapter that goes in the middle of an answer changes the text without an error. Count who uses it;
    ``dynamo_sdk.engines.loras.LoraTable`` does.
    """
    engine = await bench.any_engine()
    adapting = _adapting(engine)
    before = engine.load()
    async with _loaded(bench, engine) as adapters:
        adapter = adapters[0]
        request = replace(await _request(bench, seed=1036), lora=adapter.name)
        alone = (await read_all(engine, _another(request))).token_ids
        rest = Answer()
        has_ended_first = False
        async with anyio.create_task_group() as tasks, aclosing(engine.generate(_another(request))) as chunks:
            rest.chunks.append(await anext(chunks))
            is_unloaded = anyio.Event()

            async def unload() -> None:
                await adapting.unload_lora(adapter.name)
                is_unloaded.set()

            tasks.start_soon(unload)
            while adapter in adapting.loras():
                await checkpoint()
            await _require_refused(engine, adapter.name)
            async for chunk in chunks:
                has_ended_first |= is_unloaded.is_set() and chunk.finish_reason is None
                rest.chunks.append(chunk)
        require(not has_ended_first, "unload_lora returned while a request for the adapter ran")
        require(
            rest.token_ids == alone or not bench.is_exact,
            f"an answer was {alone}, and {rest.token_ids} when its adapter was unloaded meanwhile",
        )
        await _require_refused(engine, adapter.name)
        await adapting.load_lora(adapter)
        again = (await read_all(engine, _another(request))).token_ids
        require(again == alone or not bench.is_exact, f"loaded again, it gave {again} instead of {alone}")
    require_settled(engine, before)


async def a_used_name_starts_anew(bench: EngineBench) -> None:
    """An adapter that is loaded under a name that another one had finds none of that one's KV, and a name
    that is taken is refused (``InvalidRequest``).

    Adapters are replaced under their names all the time, and KV that is found by the name alone is that of
    the old weights. Forget the blocks of an adapter that goes, or make the load part of their names.
    """
    engine = await bench.any_engine()
    adapting = _adapting(engine)
    if len(bench.loras) < 2:
        raise NotApplicable("it takes two adapters to replace one")
    request = replace(await _request(bench, seed=1037), lora="kit-replaced")
    answers: list[Answer] = []
    for index, path in enumerate(bench.loras[:2]):
        await adapting.load_lora(LoraSpec(name="kit-replaced", path=path))
        try:
            answers.append(await read_all(engine, _another(request)))
            other = bench.loras[1 - index]
            try:
                await adapting.load_lora(LoraSpec(name="kit-replaced", path=other))
            except InvalidRequest:
                pass
            else:
                raise CheckFailed(f"{other} was loaded under the name of an adapter that was there")
        finally:
            await adapting.unload_lora("kit-replaced")
    usage = answers[1].usage
    num_cached = usage.num_cached_tokens if usage else 0
    require(num_cached == 0, f"{num_cached} tokens of the KV of another adapter of that name were used")
    if bench.is_exact:
        own = LoraSpec(name="kit-own-name", path=bench.loras[1])
        await adapting.load_lora(own)
        try:
            answer = await read_all(engine, _another(replace(request, lora=own.name)))
        finally:
            await adapting.unload_lora(own.name)
        require(
            answer.token_ids == answers[1].token_ids,
            f"under a new name it gave {answer.token_ids}, under a used one {answers[1].token_ids}",
        )


async def adapters_are_handed_over(bench: EngineBench) -> None:
    """Prefill and decode legs of an adapter give what one engine gives for it.

    The decode leg must apply it too, to KV that was computed with it.
    """
    if not bench.is_exact:
        raise NotApplicable("the engine is not exact")
    legs = await Legs.of(bench)
    alone = await legs.alone(bench)
    async with AsyncExitStack() as stack:
        for engine in dict.fromkeys((legs.prefill, legs.decode, alone)):
            adapters = await stack.enter_async_context(_loaded(bench, engine))
        for adapter in adapters:
            request = replace(await _request(bench, seed=1038, role=Role.DECODE), lora=adapter.name)
            joined = await legs.run(_another(request))
            whole = await read_all(alone, replace(_another(request), role=Role.AGGREGATED))
            require(
                joined == whole.token_ids,
                f"with an adapter the two legs gave {joined}, one engine {whole.token_ids}",
            )


# -- what they share


def _adapting(engine: Engine) -> AdaptsLora:
    if not isinstance(engine, AdaptsLora):
        raise NotApplicable("the engine serves no LoRA adapters")
    return engine


@asynccontextmanager
async def _loaded(bench: EngineBench, engine: Engine) -> AsyncIterator[list[LoraSpec]]:
    """All adapters of the bench, under names of the kit."""
    adapting = _adapting(engine)
    if not bench.loras:
        raise NotApplicable("no adapter was given to load; name a folder")
    adapters = [LoraSpec(name=f"kit-{index}", path=path) for index, path in enumerate(bench.loras)]
    try:
        for adapter in adapters:
            await adapting.load_lora(adapter)
        yield adapters
    finally:
        for adapter in adapting.loras():
            await adapting.unload_lora(adapter.name)


async def _request(bench: EngineBench, *, seed: int, role: Role = Role.AGGREGATED) -> GenerateRequest:
    facts = await bench.facts(bench.whole_role)
    sampling = SamplingParams(max_tokens=_NUM_TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
    prompt = bench.prompt(seed, min(_NUM_PROMPT_TOKENS, facts.context_length // 2))
    return generate_request(prompt, sampling, role=role)


def _another(request: GenerateRequest) -> GenerateRequest:
    """The same under an id of its own."""
    return replace(request, request_id=generate_request().request_id)


def _differ(one: Answer, other: Answer) -> bool:
    """In tokens, or in how sure they are of them."""
    if one.token_ids != other.token_ids:
        return True
    pairs = zip(one.logprobs, other.logprobs, strict=False)
    return any(abs(ours.logprob - theirs.logprob) > 1e-3 for ours, theirs in pairs)


async def _require_refused(engine: Engine, name: str) -> None:
    request = replace(generate_request(), lora=name)
    try:
        answer = await read_all(engine, request)
    except ModelNotFound:
        return
    except DynamoError as error:
        raise CheckFailed(
            f"a request for an adapter that is not there raised {type(error).__name__}, not ModelNotFound"
        ) from error
    raise CheckFailed(
        f"a request for the adapter {name!r}, which is not there, was answered with {answer.token_ids}"
    )


LORA_CHECKS = (
    unknown_adapters_are_refused,
    adapters_answer_in_their_own_way,
    adapters_share_a_batch,
    unloading_lets_requests_end,
    a_used_name_starts_anew,
    adapters_are_handed_over,
)
