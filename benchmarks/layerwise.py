"""What loading KV layer by layer could save at most: the shorter of a load and the computing behind it.

A request's blocks are loaded whole, then its suffix is computed. If each layer were computed as soon as its
part has arrived, the shorter of the two would be hidden behind the longer one. Two views of that bound, as a
share of TTFT, for a model of eight billion parameters (128 KiB of KV per token):

* a request alone: arithmetic over link speeds, prefill rates and lengths;
* chats in simulation, on the default formula for steps: from what each request loaded and computed. Waiting
  for steps of others is part of TTFT here.

    python -m benchmarks.layerwise
"""

from __future__ import annotations

from statistics import fmean

from dynamo_sdk.engines.mocker import MockerConfig, StepWork
from dynamo_sdk.engines.mocker.timing import PolynomialTiming
from dynamo_sdk.plugins import Registry
from dynamo_sdk.simulate import FleetSpec, Outcome, PoolSpec, simulate
from dynamo_sdk.simulate.record import RequestRecord
from dynamo_sdk.simulate.workloads import parse_generator
from dynamo_sdk.types import Role

BYTES_PER_TOKEN = 131_072
PREFIX_TOKENS = 8192
NUM_BLOCKS = 2048
LINKS = (("ram", 25.0), ("ram", 50.0), ("disk", 7.0), ("disk", 3.0))
"""Kind of tier, GB (a thousand million bytes) per second."""
CHATS = {
    "200 tokens a turn": "chats,sessions=80,turns=30,rate=1,message_tokens=200,output_tokens=150,think_s=60",
    "1,024 tokens a turn": "chats,sessions=80,turns=10,rate=1,message_tokens=1024,think_s=60",
}


def hidden_share(load_s: float, compute_s: float) -> float:
    """Of the time of a request that is alone."""
    return min(load_s, compute_s) / (load_s + compute_s)


def run(load: str, kind: str, gb_per_s: float) -> Outcome:
    registry = Registry.of()
    config = MockerConfig.model_validate(
        {
            "num_blocks": NUM_BLOCKS,
            "context_length": 65536,
            "kv_bytes_per_token": BYTES_PER_TOKEN,
            "tiers": [{"kind": kind, "capacity": "512GiB", "min_uses": 0}],
            "tier_speeds": {kind: {"read_gb_per_s": gb_per_s}},
        }
    )
    pool = PoolSpec(service="Model", role=Role.AGGREGATED, num_replicas=1, config=config)
    spec = FleetSpec(pools=(pool,), router_name="kv", new_router=lambda role: registry.build_router("kv"))
    return simulate(parse_generator(load).make(seed=0, block_tokens=512), spec)


def suffix_s(request: RequestRecord) -> float:
    """What computing took that was not found."""
    work = StepWork(
        num_prefill_requests=1,
        num_prefill_tokens=request.num_input_tokens - request.num_cached_tokens,
        num_decode_requests=0,
        num_decode_kv_tokens=0,
        num_capacity_tokens=NUM_BLOCKS * 64,
    )
    return PolynomialTiming().prefill_s(work)


def main() -> None:
    print(f"alone, a prefix of {PREFIX_TOKENS:,} tokens: load; share that is hidden at most")
    for kind, gb_per_s in LINKS:
        load_s = PREFIX_TOKENS * BYTES_PER_TOKEN / gb_per_s / 1e9
        shares = [
            f"{num_tokens} at {rate:,}/s {hidden_share(load_s, num_tokens / rate):4.0%}"
            for num_tokens in (200, 1000)
            for rate in (10_000, 50_000)
        ]
        print(f"  {kind:4} {gb_per_s:4.0f} GB/s  {1e3 * load_s:6.1f} ms  {';  '.join(shares)}")
    for name, load in CHATS.items():
        print(f"chats, {name}: of those that loaded")
        for kind, gb_per_s in LINKS:
            outcome = run(load, kind, gb_per_s)
            ttft_s = fmean(request.ttft_s or 0.0 for request in outcome.requests)
            loaded = [request for request in outcome.requests if request.num_loaded_tokens]
            hidden_s = [min(request.load_s, suffix_s(request)) for request in loaded]
            print(
                f"  {kind:4} {gb_per_s:4.0f} GB/s  {len(loaded):5} of {len(outcome.requests)}  "
                f"load {1e3 * fmean(request.load_s for request in loaded):6.1f} ms, "
                f"suffix {1e3 * fmean(map(suffix_s, loaded)):5.1f} ms, "
                f"TTFT {1e3 * fmean(request.ttft_s or 0.0 for request in loaded):6.1f} ms;  mean of all "
                f"{1e3 * ttft_s:6.1f} ms, at most {sum(hidden_s) / len(outcome.requests) / ttft_s:4.0%} less"
            )


if __name__ == "__main__":
    main()
