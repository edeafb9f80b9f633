"""Workloads of which the figures under NVIDIA Dynamo's offline replay are known."""

from __future__ import annotations

from random import Random

from dynamo_sdk.simulate import Arrival, Workload


def zipf_prompts(num_requests: int, rate: float) -> Workload:
    """64 system prompts of 8 pieces of 512 tokens, asked for by Zipf's law, each time with 1 to 3 new pieces;
    127 tokens of answer on average. ``rate``: requests a second."""
    rng = Random(7)
    prompts = [tuple(range(8 * number, 8 * number + 8)) for number in range(64)]
    next_id, at_ms = 8 * 64, 0.0
    arrivals: list[Arrival] = []
    for _ in range(num_requests):
        at_ms += rng.expovariate(rate) * 1e3
        (prompt,) = rng.choices(prompts, [1 / (number + 1) for number in range(64)])
        num_own = rng.randint(1, 3)
        ids = (*prompt, *range(next_id, next_id + num_own))
        next_id += num_own
        num_input_tokens = len(ids) * 512 - rng.randint(0, 511)
        arrivals.append(
            Arrival(
                at_s=round(at_ms, 3) / 1e3,
                num_input_tokens=num_input_tokens,
                num_output_tokens=max(1, int(rng.expovariate(1 / 128))),
                hash_ids=ids,
            )
        )
    return Workload(name=f"zipf, {rate:g} a second", arrivals=tuple(arrivals))
