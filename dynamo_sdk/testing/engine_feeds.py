"""Engine checks: load, metrics of the steps, and embeddings, where the engine has them."""

from __future__ import annotations

import math

import msgspec

from dynamo_sdk.errors import DynamoError, InvalidRequest
from dynamo_sdk.interfaces import Embeds, PublishesMetrics
from dynamo_sdk.types import NO_TOKENS, EmbedRequest, ForwardPassMetrics, pack_tokens

from .engine_bench import EngineBench, greedy
from .report import CheckFailed, NotApplicable, require
from .streams import generate_request, read_all


async def load_follows_the_requests(bench: EngineBench) -> None:
    """While a request runs, ``load`` counts it; block counts are within the engine's own; time goes forward.

    Routers and the planner steer by it. Read it from what the scheduler holds now, not from the last step's
    report.
    """
    engine = await bench.any_engine()
    facts = await bench.facts(bench.whole_role)
    idle = engine.load()
    if idle is None:
        raise NotApplicable("load() tells nothing")
    stream = engine.generate(bench.greedy(num_tokens=100))
    try:
        await anext(stream)
        busy = engine.load()
    finally:
        await stream.aclose()
    if busy is None:
        raise CheckFailed("load() tells nothing while a request runs")
    require(busy.num_running + busy.num_waiting > 0, "load() counts no request while one runs")
    require(busy.at_s >= idle.at_s, f"load() went from {idle.at_s} s back to {busy.at_s} s")
    for load in (idle, busy):
        require(
            0 <= load.num_free_blocks <= load.num_blocks,
            f"{load.num_free_blocks} of {load.num_blocks} blocks are free",
        )
        require(
            facts.num_blocks in (None, load.num_blocks),
            f"load() counts {load.num_blocks} blocks, start() said {facts.num_blocks}",
        )


async def metrics_count_steps(bench: EngineBench) -> None:
    """Each forward pass is reported once, in order, and the passes add up to the tokens of the prompt.

    Throughput is computed from them. Number the steps where they are made; report a chunked prefill chunk by
    chunk.
    """
    seen = await _record_metrics(bench, 3001)
    steps = [metrics.step for metrics in seen]
    require(steps == sorted(set(steps)), f"steps came as {steps}")
    num_prefilled = sum(metrics.num_prefill_tokens for metrics in seen)
    require(num_prefilled >= 12, f"a prompt of 12 tokens was prefilled in {num_prefilled}")


async def metrics_are_plausible(bench: EngineBench) -> None:
    """No figure of a forward pass is negative or infinite, none speaks of more free blocks than there are,
    and tokens are prefilled for requests.

    Dashboards and the planner take means of them, which one odd figure spoils.
    """
    seen = await _record_metrics(bench, 3002)
    num_blocks = (await bench.facts(bench.whole_role)).num_blocks
    for metrics in seen:
        figures = msgspec.structs.asdict(metrics)
        odd = {name: value for name, value in figures.items() if not 0 <= value < math.inf}
        require(not odd, f"step {metrics.step} reports {odd}")
        require(
            num_blocks is None or metrics.num_free_blocks <= num_blocks,
            f"step {metrics.step} reports {metrics.num_free_blocks} free blocks of {num_blocks}",
        )
        require(
            not metrics.num_prefill_tokens or metrics.num_prefill_requests > 0,
            f"step {metrics.step} prefilled {metrics.num_prefill_tokens} tokens of no request",
        )
    times = [metrics.at_s for metrics in seen]
    require(times == sorted(times), "at_s goes back from one step to the next")


async def embeddings_have_length_one(bench: EngineBench) -> None:
    """Vectors are L2-normalised, all of one size, and equal for equal prompts.

    Vector databases compare by inner product. Divide by the norm after pooling, in float32.
    """
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
    """Embedding a prompt without tokens raises ``InvalidRequest``.

    There is nothing to pool. Check before the model runs.
    """
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


async def _record_metrics(bench: EngineBench, seed: int) -> list[ForwardPassMetrics]:
    """What the engine reports of one request with a new prompt of 12 tokens; at least one step."""
    seen: list[ForwardPassMetrics] = []
    engine = await bench.any_engine()
    if not isinstance(engine, PublishesMetrics):
        raise NotApplicable("the engine publishes no metrics")
    engine.subscribe_metrics(seen.append)
    await read_all(engine, generate_request(bench.prompt(seed), greedy(5)))
    require(bool(seen), "no forward pass was reported")
    return seen


FEED_CHECKS = (
    load_follows_the_requests,
    metrics_count_steps,
    metrics_are_plausible,
    embeddings_have_length_one,
    empty_embedding_is_refused,
)
