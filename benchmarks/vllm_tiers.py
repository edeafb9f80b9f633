"""What a RAM tier below vLLM's device does to the time to the first token, on the real vLLM of this machine.

Users chat, all at once: each turn is all that was said before, and something new. Their prefixes together
are several times what the device holds. Two vLLMs, one without tiers and one with host memory (loads are
decided by measurement), run the same conversations in turn, round by round; those of a round are new.
Figures are of the turns after the first, whose prompt nobody can have; the outputs of both are compared.

Runs where vLLM is: ``.venv-engines/vllm/bin/python benchmarks/vllm_tiers.py --rounds 3``
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
os.environ.update({"OMP_NUM_THREADS": "1"} | ENVIRONMENT)

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from dynamo_sdk.interfaces import EngineSetup, KVTierSetup  # noqa: E402
from dynamo_sdk.plugins import Registry  # noqa: E402
from dynamo_sdk.types import GenerateRequest, ModelSpec, Role, SamplingParams, pack_tokens  # noqa: E402
from dynamo_sdk.types.plan import KVTierPlan  # noqa: E402
from dynamo_sdk_vllm.config import VllmConfig  # noqa: E402
from dynamo_sdk_vllm.engine import VllmEngine  # noqa: E402
from dynamo_sdk_vllm.tiers.config import Shard, setups_of  # noqa: E402

VOCAB, BLOCK_SIZE, CONTEXT = 512, 32, 1536


@dataclass
class Turn:
    ttft_s: float
    num_cached: int
    token_ids: list[int]


def build_model(folder: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 128),
        head_dim=64,
        max_position_embeddings=CONTEXT,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


def tiers(capacity_bytes: int) -> tuple[KVTierSetup, ...]:
    plan = KVTierPlan(name="ram", kind="ram", capacity_bytes=capacity_bytes)
    return setups_of([plan], Registry.of(), Shard())


def engine(folder: Path, kv_tiers: tuple[KVTierSetup, ...], options: argparse.Namespace) -> VllmEngine:
    setup = EngineSetup(
        model=ModelSpec(name="model", path=str(folder)), role=Role.AGGREGATED, kv_tiers=kv_tiers
    )
    config = VllmConfig.model_validate(
        {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": CONTEXT,
            "skip_tokenizer_init": True,
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks_override": options.device_tokens // BLOCK_SIZE,
            "max_num_seqs": 16,
            "environment": ENVIRONMENT,
        }
    )
    return VllmEngine(setup, config)


async def ask(llm: VllmEngine, name: str, prompt: list[int], num_tokens: int) -> Turn:
    request = GenerateRequest(
        request_id=name,
        model="model",
        prompt=pack_tokens(prompt),
        sampling=SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True),
    )
    begin_s, ttft_s, token_ids, num_cached = time.perf_counter(), 0.0, [], 0
    async for chunk in llm.generate(request):
        if chunk.token_ids and not token_ids:
            ttft_s = time.perf_counter() - begin_s
        token_ids += chunk.token_ids
        if chunk.usage is not None:
            num_cached = chunk.usage.num_cached_tokens
    return Turn(ttft_s, num_cached, token_ids)


async def converse(llm: VllmEngine, user: int, seed: int, options: argparse.Namespace) -> list[Turn]:
    chance = random.Random(1000 * seed + user)
    said = [chance.randrange(1, VOCAB) for _ in range(options.first_tokens)]
    turns: list[Turn] = []
    for number in range(options.turns):
        turns.append(await ask(llm, f"{seed}-{user}-{number}", said, options.answer_tokens))
        said += turns[-1].token_ids + [chance.randrange(1, VOCAB) for _ in range(options.turn_tokens)]
    return turns


async def play(llm: VllmEngine, seed: int, options: argparse.Namespace) -> list[list[Turn]]:
    return await asyncio.gather(*(converse(llm, user, seed, options) for user in range(options.users)))


def mean_ttft_ms(turns: list[list[Turn]]) -> float:
    return 1e3 * statistics.mean(turn.ttft_s for user in turns for turn in user[1:])


async def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder, options)
        async with AsyncExitStack() as stack:
            sides: dict[str, VllmEngine] = {}
            for side, kv_tiers in {"off": (), "ram": tiers(options.ram_mib << 20)}.items():
                sides[side] = engine(folder, kv_tiers, options)
                stack.push_async_callback(sides[side].close)
                await sides[side].start()
                await play(sides[side], 0, options)  # imports, measurements
            await measure(sides, options)


async def measure(sides: dict[str, VllmEngine], options: argparse.Namespace) -> None:
    ratios: list[float] = []
    for seed in range(1, options.rounds + 1):
        turns = {
            side: await play(llm, seed, options) for side, llm in sorted(sides.items(), reverse=seed % 2 == 0)
        }
        off, ram = mean_ttft_ms(turns["off"]), mean_ttft_ms(turns["ram"])
        ratios.append(ram / off)
        same = all(
            one.token_ids == other.token_ids
            for pair in zip(turns["off"], turns["ram"], strict=True)
            for one, other in zip(*pair, strict=True)
        )
        cached = {side: sum(turn.num_cached for user in turns[side] for turn in user) for side in turns}
        print(
            f"round {seed}: mean TTFT off {off:.0f} ms, ram {ram:.0f} ms, ratio {ram / off:.2f}; "
            f"cached tokens {cached['off']} and {cached['ram']}; outputs {'equal' if same else 'DIFFER'}"
        )
    print(f"median ratio {statistics.median(ratios):.2f} of {len(ratios)} rounds")
    print(f"decisions {sides['ram'].kv_tier_statistics().num_decisions}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--first-tokens", type=int, default=400)
    parser.add_argument("--turn-tokens", type=int, default=100)
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--device-tokens", type=int, default=2048)
    parser.add_argument("--ram-mib", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
