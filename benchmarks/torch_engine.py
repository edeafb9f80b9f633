"""What the torch engine costs over calling the model directly, with the same batch.

For each batch size, both sides run the same prompts (all of one length, so that the direct side needs no
padding) and the same number of greedy tokens, in turn, within one process:

* direct: ``model(...)`` on the whole batch, transformers' dynamic cache and attention, argmax;
* engine: one ``TorchEngine.generate`` per prompt, through scheduler, paged cache, sampler and event loop.

A ratio above 1 means that the engine is slower. Prefix caching is off, because every round repeats the
prompts. Example: ``python benchmarks/torch_engine.py --batch 1 8 32 --threads 1``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from dynamo_sdk.engines.torch.config import TorchConfig
from dynamo_sdk.engines.torch.engine import TorchEngine
from dynamo_sdk.interfaces import EngineSetup
from dynamo_sdk.types import GenerateRequest, ModelSpec, Role, SamplingParams, pack_tokens


def build_model(folder: str, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 128),
        max_position_embeddings=4096,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


@torch.inference_mode()
def run_direct(
    model: torch.nn.Module, prompts: torch.Tensor, num_tokens: int
) -> tuple[float, list[list[int]]]:
    started_s = time.perf_counter()
    output = model(prompts, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    tokens = [token]
    for _ in range(num_tokens - 1):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(token)
    generated = torch.cat(tokens, dim=1).tolist()
    return time.perf_counter() - started_s, generated


async def run_engine(
    engine: TorchEngine, prompts: torch.Tensor, num_tokens: int
) -> tuple[float, list[list[int]]]:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0)

    async def one(index: int, prompt: list[int]) -> list[int]:
        request = GenerateRequest(
            request_id=f"r{index}", model="bench", prompt=pack_tokens(prompt), sampling=sampling
        )
        return [token async for chunk in engine.generate(request) for token in chunk.token_ids]

    started_s = time.perf_counter()
    generated = await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts.tolist())))
    return time.perf_counter() - started_s, list(generated)


async def measure(options: argparse.Namespace, folder: str) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    engine = TorchEngine(
        EngineSetup(model=ModelSpec(name="bench", path=folder), role=Role.AGGREGATED),
        TorchConfig(
            device=options.device,
            dtype="float32",
            enable_prefix_caching=False,
            num_threads=options.threads,
            max_num_seqs=max(options.batch),
            max_num_batched_tokens=max(2048, *options.batch),
        ),
    )
    await engine.start()
    print(
        f"{'batch':>5} {'direct tok/s':>13} {'engine tok/s':>13} {'ratio':>6}"
        f" {'best..worst':>13} {'same tokens':>12}"
    )
    try:
        for batch in options.batch:
            prompts = torch.randint(1, options.vocab, (batch, options.prompt), device=device)
            ratios, direct_s, engine_s, same = [], [], [], 1.0
            for is_warm in [False] + [True] * options.rounds:
                direct, expected = run_direct(model, prompts, options.tokens)
                ours, generated = await run_engine(engine, prompts, options.tokens)
                if is_warm:
                    direct_s.append(direct)
                    engine_s.append(ours)
                    ratios.append(ours / direct)
                    same = sum(a == b for a, b in zip(expected, generated, strict=True)) / batch
            num_tokens = batch * options.tokens
            print(
                f"{batch:>5} {num_tokens / statistics.median(direct_s):>13.0f}"
                f" {num_tokens / statistics.median(engine_s):>13.0f} {statistics.median(ratios):>6.2f}"
                f" {min(ratios):>6.2f}..{max(ratios):<5.2f} {same:>11.0%}"
            )
    finally:
        await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=256, help="tokens in each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate for each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, a multiple of 128")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_model(folder, options)
        asyncio.run(measure(options, folder))


if __name__ == "__main__":
    main()
