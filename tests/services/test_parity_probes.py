"""The doctor's prompts are those that clients could have sent, in the sizes that show mistakes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

import dynamo_sdk
from dynamo_sdk.preprocess import ChatTemplate, ModelPipeline, Tokenizer
from dynamo_sdk.services.parity_probes import NUM_BLOCKS, make_probes
from dynamo_sdk.types import num_tokens, unpack_tokens

pytestmark = pytest.mark.anyio

DEMO_MODEL = Path(dynamo_sdk.__file__).parent / "demo_model"
PLAIN = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN
CONTEXT_LENGTH = 1024


def pipeline_of(template: str | None, context_length: int = CONTEXT_LENGTH) -> ModelPipeline:
    return ModelPipeline(
        name="m",
        context_length=context_length,
        tokenizer=Tokenizer.load(str(DEMO_MODEL)),
        chat_template=None if template is None else ChatTemplate(template, special_tokens={}),
    )


@pytest.mark.parametrize(
    ("template", "adapter", "names"),
    [
        (PLAIN, None, ["text", "chat"]),
        (WITH_TOOLS, None, ["text", "chat", "tools"]),
        (WITH_TOOLS, "a", ["text", "chat", "tools", "lora"]),
        (None, None, ["text", "chat"]),
        ("{{ raise_exception('no') }}", None, ["text", "chat"]),
    ],
)
async def test_what_a_model_has_is_probed(
    template: str | None, adapter: str | None, names: list[str]
) -> None:
    probes = await make_probes(
        pipeline_of(template), 16, num_texts=1, adapter=adapter, num_new_tokens=1, rng=Random(1)
    )
    assert [probe.name for probe in probes] == names
    assert num_tokens(probes[0].tokens) == NUM_BLOCKS * 16, "full to the last block"
    assert [probe.cache_salt is None for probe in probes] == [True] + [False] * (len(names) - 1)
    assert [probe.lora for probe in probes if probe.name != "lora"] == [None] * len(set(names) - {"lora"})
    assert adapter is None or probes[-1].lora == adapter
    for probe in probes:
        assert len(probe.keys(16)) >= 2
    firsts = [bytes(probe.tokens[:64]) for probe in probes if probe.name != "tools"]
    assert len(set(firsts)) == len(firsts), "one prompt's blocks would answer for another's"


async def test_the_chat_goes_through_the_template() -> None:
    pipeline = pipeline_of(PLAIN)
    probes = await make_probes(pipeline, 16, num_texts=1, adapter=None, num_new_tokens=1, rng=Random(1))
    assert pipeline.tokenizer.decode(unpack_tokens(probes[1].tokens)).startswith("<user>")


async def test_each_rank_gets_a_text_of_its_own() -> None:
    probes = await make_probes(
        pipeline_of(None), 16, num_texts=3, adapter=None, num_new_tokens=1, rng=Random(1)
    )
    assert [probe.name for probe in probes] == ["text", "text", "text", "chat"]
    assert len({probe.tokens for probe in probes}) == 4


async def test_probes_fit_into_short_contexts_or_are_none() -> None:
    for context_length in (16, 17, 40, 70, 100):
        probes = await make_probes(
            pipeline_of(WITH_TOOLS, context_length),
            16,
            num_texts=1,
            adapter=None,
            num_new_tokens=1,
            rng=Random(1),
        )
        assert bool(probes) == (context_length > 16)
        assert all(16 <= num_tokens(probe.tokens) < context_length for probe in probes)
