"""The prompts of the parity doctor: made as those of clients are, by the model's own template and tokenizer.

=========  =======================================================================================
``text``   a completion, full to the end of its last block, for each rank; the one without a salt
``chat``   a conversation; a second completion where the model has no chat template
``tools``  the same with a tool, where the template shows it
``lora``   a completion for one of the adapters that are served
=========  =======================================================================================

All are made of random words of their own, so nobody else has or will have a block of them, and an engine
that ignores salts or adapters still has to compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.kv.parity import ParityProbe
from dynamo_sdk.preprocess import Message, ModelPipeline
from dynamo_sdk.types import num_tokens, pack_tokens
from dynamo_sdk.types.plan import Json

NUM_BLOCKS = 4
CHAT_BLOCKS = 2.5
_TOOL: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def make_probes(
    pipeline: ModelPipeline,
    block_size: int,
    *,
    num_texts: int,
    adapter: str | None,
    num_new_tokens: int,
    rng: Random,
) -> list[ParityProbe]:
    """The texts first. Only what fills a block and fits into the context with that many new tokens."""
    num_wanted = min(NUM_BLOCKS, (pipeline.context_length - num_new_tokens) // block_size) * block_size
    if num_wanted <= 0:
        return []
    salt = f"parity-{rng.getrandbits(64):016x}"

    async def text() -> list[int]:
        return (await _words(pipeline, num_wanted, rng))[1][:num_wanted]

    def probe(name: str, ids: Sequence[int], *, salted: bool = True, lora: str | None = None) -> ParityProbe:
        return ParityProbe(
            name=name,
            tokens=pack_tokens(ids),
            num_new_tokens=num_new_tokens,
            cache_salt=f"{salt}-{name}" if salted else None,
            lora=lora,
        )

    words, ids = await _words(pipeline, num_wanted, rng)
    num_chat_words = max(1, int(len(words) * CHAT_BLOCKS * block_size / len(ids)))
    chat = await _chat(pipeline, words[:num_chat_words], None)
    tools = await _chat(pipeline, words[-num_chat_words:], [_TOOL])
    plain = await _chat(pipeline, words[-num_chat_words:], None)
    probes = [probe("text", await text(), salted=False) for _ in range(num_texts)]
    probes.append(probe("chat", chat or await text()))
    if tools is not None and tools != plain:
        probes.append(probe("tools", tools))
    if adapter is not None:
        probes.append(probe("lora", await text(), lora=adapter))
    most = pipeline.context_length - num_new_tokens
    return [made for made in probes if block_size <= num_tokens(made.tokens) <= most]


async def _words(pipeline: ModelPipeline, num_tokens: int, rng: Random) -> tuple[list[str], list[int]]:
    """Random words, and their ids as a completion has them: at least ``num_tokens``."""
    words: list[str] = []
    ids: list[int] = []
    while len(ids) < num_tokens:
        words += [str(rng.randrange(1000, 10000)) for _ in range(8)]
        ids = await pipeline.encode_text(" ".join(words), param="prompt")
    return words, ids


async def _chat(pipeline: ModelPipeline, words: Sequence[str], tools: list[Json] | None) -> list[int] | None:
    """None where the model has no template, it refuses this, or it is too long."""
    messages: list[Message] = [{"role": "user", "content": " ".join(words)}]
    try:
        return await pipeline.encode_chat(messages, variables=None if tools is None else {"tools": tools})
    except InvalidRequest:
        return None
