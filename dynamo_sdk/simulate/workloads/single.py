"""Requests that stand alone: under shared system prompts, or sharing nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from dynamo_sdk.simulate.arrivals import Arrival

from .making import Count, Generator, Mean, Rate
from .parts import Source, Stream


class SharedPrompts(Generator, frozen=True, kw_only=True, tag="shared-prompts"):
    """``num_prompts`` system prompts of ``prompt_tokens``, rounded up to whole blocks; the n-th is asked for
    ``n ** zipf`` times less than the first. ``question_tokens`` and ``output_tokens`` are means."""

    requests: Count = 2000
    rate: Rate = 20.0
    num_prompts: Count = 64
    zipf: float = 1.0
    prompt_tokens: Count = 4096
    question_tokens: Mean = 768.0
    output_tokens: Mean = 128.0

    def arrivals(self, source: Source) -> Iterator[Arrival]:
        prompts = [source.new_ids(self.prompt_tokens) for _ in range(self.num_prompts)]
        weights = [1 / number**self.zipf for number in range(1, self.num_prompts + 1)]
        for at_s in islice(source.poisson_times(self.rate), self.requests):
            (prompt,) = source.rng.choices(prompts, weights)
            stream = Stream(source, prompt, len(prompt) * source.block_tokens)
            stream.say(source.length(self.question_tokens))
            yield Arrival(
                at_s=at_s,
                num_input_tokens=stream.num_tokens,
                num_output_tokens=source.length(self.output_tokens),
                hash_ids=stream.ids(),
            )


class Unique(Generator, frozen=True, kw_only=True, tag="unique"):
    """``input_tokens`` and ``output_tokens`` are means."""

    requests: Count = 2000
    rate: Rate = 10.0
    input_tokens: Mean = 4096.0
    output_tokens: Mean = 128.0

    def arrivals(self, source: Source) -> Iterator[Arrival]:
        for at_s in islice(source.poisson_times(self.rate), self.requests):
            num_tokens = source.length(self.input_tokens)
            yield Arrival(
                at_s=at_s,
                num_input_tokens=num_tokens,
                num_output_tokens=source.length(self.output_tokens),
                hash_ids=tuple(source.new_ids(num_tokens)),
            )
