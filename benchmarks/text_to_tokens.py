"""What a prompt costs the frontend between text and token ids, and a token on its way back to text.

Prompts are natural text, each one another piece of this repository's pages and sources, so that a word
cache works as it does in use and a prompt cache has nothing to find; ``turns`` is a conversation that
resends its history. Times are medians per prompt in microseconds, taken in one process with nothing else
going on. ``chat`` is the whole of ``encode_chat``, ``render`` and ``encode`` are its two halves, ``pack``
is the packing of the ids; ``hop`` is what a thread adds to a prompt that is encoded off the loop.

    python benchmarks/text_to_tokens.py [--model dynamo_sdk/demo_model] [--tokens 8 128 2048 16384]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import dynamo_sdk
from dynamo_sdk.preprocess import ChatTemplate, Message, ModelPipeline, StopStringMatcher, Tokenizer
from dynamo_sdk.preprocess.model_files import read_model_files
from dynamo_sdk.preprocess.pipeline import run_off_loop
from dynamo_sdk.types import ModelRecord, pack_tokens

REPOSITORY = Path(dynamo_sdk.__file__).parent.parent
NUM_TURNS = 16
NUM_OUTPUT_TOKENS = 20_000

_T = TypeVar("_T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(REPOSITORY / "dynamo_sdk" / "demo_model"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 128, 2048, 16_384, 200_000])
    parser.add_argument("--budget-s", type=float, default=2.0, help="seconds per size, about")
    options = parser.parse_args()

    record = ModelRecord(name="m", path=options.model, context_length=10**7)
    pipeline = ModelPipeline.load(record)
    source = read_model_files(Path(options.model)).chat_template
    if source is None:
        raise SystemExit(f"{options.model} has no chat template; name another --model")
    template = ChatTemplate(source, special_tokens=pipeline.tokenizer.special_tokens)
    text = natural_text()

    print(f"model {options.model}, us per prompt")
    print(f"{'tokens':>8}{'chat':>10}{'render':>10}{'encode':>10}{'pack':>10}{'hop':>10}")
    for num_tokens in options.tokens:
        prompts = cut(text, num_tokens, pipeline.tokenizer, options.budget_s)
        print_row(num_tokens, prompts, pipeline, template)
    print_turns(text, pipeline)
    print_output(text, pipeline.tokenizer)


def natural_text() -> str:
    """The pages and sources of this repository, one after the other."""
    paths = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("dynamo_sdk/**/*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(paths))


def cut(text: str, num_tokens: int, tokenizer: Tokenizer, budget_s: float) -> list[str]:
    """Five equal shares of different pieces of about ``num_tokens`` tokens each."""
    sample = text[:100_000]
    num_chars = len(sample) * num_tokens // len(tokenizer.encode(sample, add_special_tokens=False))
    text = text * (1 + 2 * num_chars // len(text))
    took_s = seconds(partial(tokenizer.encode, text[:num_chars], add_special_tokens=False))
    num_prompts = 5 * max(2, min(300, int(budget_s / 5 / took_s)))
    stride = 7919  # a prime: pieces start anywhere, and none starts where another did
    return [text[start : start + num_chars] for start in spread(num_prompts, stride, len(text) - num_chars)]


def spread(num: int, stride: int, end: int) -> Iterable[int]:
    return (index * stride % end for index in range(num))


def print_row(num_tokens: int, prompts: list[str], pipeline: ModelPipeline, template: ChatTemplate) -> None:
    """Each part gets prompts of its own, so that none finds what another left in a cache."""
    share = len(prompts) // 5
    whole, rendered, encoded, packed, hopped = (
        prompts[index * share : (index + 1) * share] for index in range(5)
    )
    tokenizer = pipeline.tokenizer
    encode = partial(tokenizer.encode, add_special_tokens=False)
    ids = [encode(prompt) for prompt in packed]
    texts = [template.render(chat(prompt)) for prompt in encoded]
    columns = [
        asyncio.run(chat_us(pipeline, [chat(prompt) for prompt in whole])),
        median_us(template.render, [chat(prompt) for prompt in rendered]),
        median_us(encode, texts),
        median_us(pack_tokens, ids),
        asyncio.run(hop_us(len(hopped))),
    ]
    print(f"{num_tokens:>8}" + "".join(f"{column:>10.1f}" for column in columns))


def chat(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


async def chat_us(pipeline: ModelPipeline, conversations: list[list[Message]]) -> float:
    times = []
    for messages in conversations:
        started = time.perf_counter()
        await pipeline.encode_chat(messages)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


async def hop_us(num: int) -> float:
    times = []
    for _ in range(max(20, num)):
        started = time.perf_counter()
        await run_off_loop(int)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def print_turns(text: str, pipeline: ModelPipeline) -> None:
    """A system prompt of 8k characters, then turns of 600: each request sends all that came before."""
    messages: list[Message] = [{"role": "system", "content": text[:8192]}]
    times = []
    num_ids = 0
    for turn in range(NUM_TURNS):
        start = 8192 + 1200 * turn
        messages.append({"role": "user", "content": text[start : start + 600]})
        times.append(asyncio.run(chat_us(pipeline, [list(messages)])))
        num_ids = len(asyncio.run(pipeline.encode_chat(messages)))
        messages.append({"role": "assistant", "content": text[start + 600 : start + 1200]})
    first, last = times[0], statistics.median(times[-3:])
    print(f"turns: first request {first:.1f} us, last {last:.1f} us with {num_ids} tokens")


def print_output(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text[: 8 * NUM_OUTPUT_TOKENS], add_special_tokens=False)[:NUM_OUTPUT_TOKENS]
    for per_call in (1, 4, 16):
        steps = [ids[index : index + per_call] for index in range(0, len(ids), per_call)]
        plain = tokenizer.detokenizer()
        stopped = tokenizer.detokenizer()
        matcher = StopStringMatcher(["\n\nUser:", "<|stop|>", "Observation:"])
        with_stops = partial(through, stopped.push, matcher.push)
        print(
            f"detokenize, {per_call} a call: {mean_us(plain.push, steps) / per_call:.3f} us per token, "
            f"{mean_us(with_stops, steps) / per_call:.3f} with three stop strings"
        )


def through(push: Callable[[list[int]], str], match: Callable[[str], str], ids: list[int]) -> str:
    return match(push(ids))


def median_us(function: Callable[[_T], object], arguments: list[_T]) -> float:
    return statistics.median(seconds(partial(function, argument)) for argument in arguments) * 1e6


def mean_us(function: Callable[[_T], object], arguments: list[_T]) -> float:
    started = time.perf_counter()
    for argument in arguments:
        function(argument)
    return (time.perf_counter() - started) / len(arguments) * 1e6


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
