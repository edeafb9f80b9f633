"""What tiers below the device do to the time to the first token, with the real engine on this machine.

Users chat: each turn is all that was said before, and something new. Their prefixes together are several
times what the device holds, so that without tiers most of each prompt is computed again. Sides run in turn
within one process, each on a fresh engine, in every round; figures are medians over the rounds, a ratio is
the median of the rounds' ratios. TTFTs are those after the first turn, whose prompt nobody can have.

* ``off``: no tiers;
* ``ram``: a RAM tier that holds everything;
* ``slow-disk``: a disk tier that gives ``--disk-mb-s``, and the cost rule;
* ``slow-disk-always``: the same disk, and everything that it has is loaded: what the rule protects from.

``--fresh``: no prompt repeats anything, so that all offloading is for nothing: what tiers cost then.

A small random model is built in a temporary folder. Example::

    python benchmarks/kv_tiers.py --sides off ram --rounds 3
    python benchmarks/kv_tiers.py --sides off slow-disk slow-disk-always --rounds 2
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.interfaces import EngineSetup, KVStore, KVTierSetup, KVTiersStatistics
from dynamo_sdk.stores import DiskStore, DiskStoreConfig, RamStore, RamStoreConfig
from dynamo_sdk.stores.block_file import OsBlockFile
from dynamo_sdk.types import GenerateRequest, KVTier, ModelSpec, Role, SamplingParams, pack_tokens
from dynamo_sdk.types.plan import KVTierPlan

VOCAB = 512
BLOCK_SIZE = 16


def build_model(folder: Path, options: argparse.Namespace) -> int:
    """Returns the bytes of KV per token."""
    torch.manual_seed(0)
    heads = options.hidden // 64
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=8192,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return options.layers * 2 * max(1, heads // 2) * 64 * 4


class SlowFile(OsBlockFile):
    """A disk that takes what comes and gives so many bytes per second."""

    bytes_per_s = 1e6

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        super().read(offset, buffers)
        time.sleep(sum(len(buffer) for buffer in buffers) / self.bytes_per_s)


def tier(name: str, kind: KVTier, capacity_bytes: int, build: Callable[[int], KVStore]) -> KVTierSetup:
    plan = KVTierPlan(name=name, kind=name, capacity_bytes=capacity_bytes)
    return KVTierSetup(name=name, tier=kind, plan=plan, build=build)


def tiers_of(side: str, capacity_bytes: int, folder: Path) -> tuple[KVTierSetup, ...]:
    if side == "off":
        return ()
    if side == "ram":
        return (
            tier(
                "ram",
                KVTier.HOST,
                capacity_bytes,
                lambda size: RamStore(RamStoreConfig(block_bytes=size, capacity_bytes=capacity_bytes)),
            ),
        )

    def build(size: int) -> KVStore:
        config = DiskStoreConfig(block_bytes=size, capacity_bytes=capacity_bytes, path=folder)
        return DiskStore(config, open_file=lambda path, direct: SlowFile(path, wants_direct=direct))

    return (tier("disk", KVTier.DISK, capacity_bytes, build),)


@dataclass
class Outcome:
    """TTFTs after the first turn, whose prompts nobody can have."""

    first_ttfts_s: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    statistics: KVTiersStatistics | None = None


async def chat(engine: TorchEngine, user: int, options: argparse.Namespace, outcome: Outcome) -> None:
    rng = random.Random(user)
    history: list[int] = []
    for turn in range(options.turns):
        await asyncio.sleep(rng.expovariate(1 / options.think_s))
        num_new = options.first_tokens if turn == 0 else options.turn_tokens
        if options.fresh:
            num_new, history = len(history) + num_new, []
        history += [rng.randrange(VOCAB) for _ in range(num_new)]
        request = GenerateRequest(
            request_id=f"{user}-{turn}",
            model="bench",
            prompt=pack_tokens(history),
            sampling=SamplingParams(max_tokens=options.output_tokens, temperature=0.0, ignore_eos=True),
        )
        begin_s, first_s = time.perf_counter(), 0.0
        async for chunk in engine.generate(request):
            first_s = first_s or time.perf_counter()
            history += chunk.token_ids
            if chunk.usage is not None:
                outcome.num_prompt_tokens += chunk.usage.num_prompt_tokens
                outcome.num_cached_tokens += chunk.usage.num_cached_tokens
        (outcome.ttfts_s if turn else outcome.first_ttfts_s).append(first_s - begin_s)


async def run_side(side: str, model: Path, num_blocks: int, options: argparse.Namespace) -> Outcome:
    capacity_bytes = options.tier_mib << 20
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        setup = EngineSetup(
            model=ModelSpec(name="bench", path=str(model)),
            role=Role.AGGREGATED,
            kv_tiers=tiers_of(side, capacity_bytes, Path(folder)),
        )
        config = TorchConfig(
            device="cpu",
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            max_num_seqs=32,
            max_num_batched_tokens=1024,
            num_threads=options.threads,
            kv_onboarding="always" if side.endswith("always") else "measured",
        )
        engine = TorchEngine(setup, config)
        outcome = Outcome()
        try:
            await engine.start()
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            await asyncio.gather(*(chat(engine, user, options, outcome) for user in range(options.users)))
            outcome.wall_s = time.perf_counter() - begin_s
            outcome.cpu_s = time.process_time() - begin_cpu_s
            outcome.statistics = engine.kv_tier_statistics()
        finally:
            await engine.close()
    return outcome


def describe(side: str, outcomes: Sequence[Outcome], base: Sequence[Outcome]) -> None:
    means = [statistics.fmean(outcome.ttfts_s) for outcome in outcomes]
    ratios = [mean / statistics.fmean(off.ttfts_s) for mean, off in zip(means, base, strict=True)]
    p50 = statistics.median(statistics.median(outcome.ttfts_s) for outcome in outcomes)
    p99 = statistics.median(statistics.quantiles(outcome.ttfts_s, n=100)[98] for outcome in outcomes)
    cached = statistics.median(outcome.num_cached_tokens / outcome.num_prompt_tokens for outcome in outcomes)
    wall_s = statistics.median(outcome.wall_s for outcome in outcomes)
    cpu = [outcome.cpu_s / off.cpu_s for outcome, off in zip(outcomes, base, strict=True)]
    print(
        f"{side:18} TTFT mean {1e3 * statistics.median(means):8.1f} ms  p50 {1e3 * p50:8.1f}  "
        f"p99 {1e3 * p99:8.1f}  of off {statistics.median(ratios):5.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})  cached {cached:4.0%}  wall {wall_s:5.1f} s  "
        f"CPU of off {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})"
    )
    last = outcomes[-1].statistics
    for facts in () if last is None else last.tiers:
        counts = facts.counts
        print(
            f"{'':18} {facts.name}: {counts.num_hit_blocks} of {counts.num_lookup_blocks} blocks found, "
            f"{counts.num_onboarded_blocks} loaded in {counts.onboard_s:.2f} s, "
            f"{facts.store.num_blocks} kept, "
            f"{counts.num_missed_blocks} gone before they were copied; decisions {last.num_decisions}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=["off", "ram"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=80)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--first-tokens", type=int, default=64)
    parser.add_argument("--turn-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=4)
    parser.add_argument("--think-s", type=float, default=1.0, help="mean pause before a turn")
    parser.add_argument("--fresh", action="store_true", help="as long, but nothing is ever said again")
    parser.add_argument("--device-share", type=float, default=0.15, help="of all prefixes together")
    parser.add_argument("--tier-mib", type=int, default=512)
    parser.add_argument("--disk-mb-s", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default=None, help="where the disk store lies")
    options = parser.parse_args()
    SlowFile.bytes_per_s = options.disk_mb_s * 1e6
    num_tokens = options.first_tokens + (options.turns - 1) * options.turn_tokens
    num_tokens += options.turns * options.output_tokens
    num_blocks = max(
        2 * -(-num_tokens // BLOCK_SIZE),
        int(options.device_share * options.users * num_tokens / BLOCK_SIZE),
    )
    with tempfile.TemporaryDirectory() as folder:
        token_bytes = build_model(Path(folder), options)
        print(
            f"{options.users} users, {options.turns} turns, {num_tokens} tokens each in the end; "
            f"{token_bytes} bytes of KV per token; the device holds {num_blocks * BLOCK_SIZE} tokens"
        )
        outcomes: dict[str, list[Outcome]] = {side: [] for side in options.sides}
        for _ in range(options.rounds):
            for side in options.sides:
                outcomes[side].append(asyncio.run(run_side(side, Path(folder), num_blocks, options)))
        for side in options.sides:
            describe(side, outcomes[side], outcomes[options.sides[0]])


if __name__ == "__main__":
    main()
