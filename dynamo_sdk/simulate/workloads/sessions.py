"""Requests that follow each other: chats of people, and agents with tools.

Each turn comes some time after the end of the one before and sends everything again. What the engine said is
part of it, under ids of its own: a simulated engine says other tokens than the workload has, so it finds what
it was sent, not what it answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from dynamo_sdk.simulate.arrivals import Arrival

from .making import Count, Generator, Mean, Rate, Share
from .parts import Source, Stream


class Chats(Generator, frozen=True, kw_only=True, tag="chats"):
    """``rate``: new chats a second. Chats have ``turns`` on average and a system prompt that they share;
    between turns people think for ``think_s`` on average. Lengths are means."""

    sessions: Count = 300
    rate: Rate = 1.0
    turns: Mean = 6.0
    system_tokens: Count = 512
    message_tokens: Mean = 256.0
    output_tokens: Mean = 256.0
    think_s: Mean = 20.0

    def arrivals(self, source: Source) -> Iterator[Arrival]:
        system = source.new_ids(self.system_tokens)
        for number, at_s in enumerate(islice(source.poisson_times(self.rate), self.sessions)):
            yield from _session(
                source,
                Stream(source, system, len(system) * source.block_tokens),
                name=f"chat-{number}",
                at_s=at_s,
                num_turns=_num_turns(source, self.turns),
                said_tokens=self.message_tokens,
                output_tokens=self.output_tokens,
                pause_s=lambda: source.rng.expovariate(1 / self.think_s),
            )


class Agents(Generator, frozen=True, kw_only=True, tag="agents"):
    """``rate``: new tasks a second, of ``kinds`` that have each a system prompt with its tools. A task makes
    ``calls`` on average; a tool takes ``tool_s`` and its result has ``result_tokens``. A ``long_pause_share``
    of the tools takes ``long_pause_s``: a build, or a person who is asked. Lengths and times are means."""

    sessions: Count = 100
    rate: Rate = 0.5
    kinds: Count = 4
    system_tokens: Count = 6144
    task_tokens: Mean = 512.0
    calls: Mean = 15.0
    result_tokens: Mean = 1024.0
    output_tokens: Mean = 96.0
    tool_s: Mean = 2.0
    long_pause_share: Share = 0.05
    long_pause_s: Mean = 120.0

    def arrivals(self, source: Source) -> Iterator[Arrival]:
        systems = [source.new_ids(self.system_tokens) for _ in range(self.kinds)]
        rng = source.rng

        def pause_s() -> float:
            is_long = rng.random() < self.long_pause_share
            return rng.expovariate(1 / (self.long_pause_s if is_long else self.tool_s))

        for number, at_s in enumerate(islice(source.poisson_times(self.rate), self.sessions)):
            system = rng.choice(systems)
            stream = Stream(source, system, len(system) * source.block_tokens)
            stream.say(source.length(self.task_tokens))
            yield from _session(
                source,
                stream,
                name=f"agent-{number}",
                at_s=at_s,
                num_turns=_num_turns(source, self.calls),
                said_tokens=self.result_tokens,
                output_tokens=self.output_tokens,
                pause_s=pause_s,
            )


def _num_turns(source: Source, mean: float) -> int:
    return max(1, round(source.rng.gauss(mean, mean / 3)))


def _session(
    source: Source,
    stream: Stream,
    *,
    name: str,
    at_s: float,
    num_turns: int,
    said_tokens: float,
    output_tokens: float,
    pause_s: Callable[[], float],
) -> Iterator[Arrival]:
    for turn in range(num_turns):
        stream.say(source.length(said_tokens))
        num_output_tokens = source.length(output_tokens)
        yield Arrival(
            at_s=pause_s() if turn else at_s,
            num_input_tokens=stream.num_tokens,
            num_output_tokens=num_output_tokens,
            hash_ids=stream.ids(),
            session=name,
            is_relative=turn > 0,
        )
        stream.say(num_output_tokens)
