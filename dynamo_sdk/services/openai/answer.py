"""Send a generation's answer, streamed or whole; chat and completions differ only in their ``Format``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from dynamo_sdk.routing.explanation import Explanation

from .choice import Delta, ScoredToken
from .exchange import Exchange, Headers
from .generation import Generation
from .inbox import DeltaInbox
from .ledger import Ledger, server_timing
from .sse import DONE, ChunkTemplate, encode_json, envelope


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """``prompt_tokens`` counts each prompt once, however many choices it has. ``prompt_tokens_details``
    is null when a stop string ended the engine's work before it said."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """The key ``dynamo`` of an answer: what the request's ``dynamo`` asked for."""

    ledger: Ledger | msgspec.UnsetType | None = msgspec.UNSET
    explain: tuple[Explanation, ...] | msgspec.UnsetType = msgspec.UNSET


@dataclass(slots=True)
class Finished:
    """A whole choice, summed up from its deltas."""

    texts: list[str] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.scored += delta.scored
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Format(ABC):
    """How one kind of answer looks. ``lead`` and ``close`` stand around a chunk's text."""

    def __init__(
        self,
        generation: Generation,
        *,
        object: str,
        lead: bytes,
        close: bytes,
        is_streamed: bool,
        has_logprobs: bool,
        has_token_ids: bool,
        shows_usage: bool,
    ) -> None:
        self._generation = generation
        self._has_logprobs = has_logprobs
        self._has_token_ids = has_token_ids
        self._head = envelope(
            id=generation.id, object=object, created_s=generation.created_s, model=generation.model
        )
        self._chunks = [
            ChunkTemplate(self._head, index=choice.index, lead=lead, close=close, shows_usage=shows_usage)
            for choice in (generation.choices if is_streamed else ())
        ]

    @abstractmethod
    def opening(self) -> bytes:
        """Events that come before the first delta."""

    def event(self, index: int, delta: Delta) -> bytes:
        """The event of one delta; nothing when it has nothing to say."""
        chunk = self._chunks[index]
        if delta.finish_reason is None and not self._has_logprobs and not self._has_token_ids:
            return chunk.text(delta.text) if delta.text else b""
        return chunk.full(
            delta.text,
            logprobs=encode_json(self.logprobs(delta, index) if self._has_logprobs else None),
            finish_reason=delta.finish_reason,
            token_ids=delta.token_ids if self._has_token_ids else None,
        )

    def closing_event(self, usage: UsageBody | None) -> bytes:
        """The event behind the last delta, for what was asked beside the text."""
        shown = b"" if usage is None else b',"usage":' + encode_json(usage)
        extras = self.extras()
        if extras is not msgspec.UNSET:
            shown += b',"dynamo":' + encode_json(extras)
        return b"".join((self._head, b'"choices":[]', shown, b"}\n\n"))

    def extras(self) -> Extras | msgspec.UnsetType:
        """Our own part of the answer, once it is complete."""
        generation = self._generation
        explanations = generation.hints.explanations
        if not generation.wants_ledger and explanations is None:
            return msgspec.UNSET
        return Extras(
            ledger=generation.ledger if generation.wants_ledger else msgspec.UNSET,
            explain=msgspec.UNSET if explanations is None else tuple(explanations),
        )

    @abstractmethod
    def logprobs(self, part: Delta | Finished, index: int) -> msgspec.Struct:
        """Of the tokens of ``part``, which belongs to choice ``index``."""

    @abstractmethod
    def whole(self, choices: Sequence[Finished], usage: UsageBody) -> bytes:
        """The answer of a request that is not streamed, as JSON."""


async def send_streamed(
    exchange: Exchange, generation: Generation, inbox: DeltaInbox, format: Format, *, shows_usage: bool
) -> None:
    """One event per delta, and one write for all that are there. The first waits for a token, so that an
    early error is a plain HTTP error."""
    num_open = len(generation.choices)

    def write(deltas: list[tuple[int, Delta]]) -> bool:
        nonlocal num_open
        events = [] if exchange.is_streaming else [format.opening()]
        for index, delta in deltas:
            events.append(format.event(index, delta))
            if delta.finish_reason is not None:
                num_open -= 1
        if not num_open:
            if shows_usage or generation.has_extras:
                events.append(format.closing_event(usage_of(generation) if shows_usage else None))
            events.append(DONE)
            exchange.end_stream(b"".join(events), () if exchange.is_streaming else _first_stages(generation))
            return False
        if not exchange.is_streaming:
            exchange.start_stream(b"".join(events), _first_stages(generation))
        elif content := b"".join(events):
            exchange.send_events(content)
        return exchange.is_writable

    while num_open:
        await inbox.deliver(write)
        await exchange.wait_writable()


async def send_whole(exchange: Exchange, generation: Generation, inbox: DeltaInbox, format: Format) -> None:
    finished = [Finished() for _ in generation.choices]
    num_open = len(finished)

    def collect(deltas: list[tuple[int, Delta]]) -> bool:
        nonlocal num_open
        for index, delta in deltas:
            finished[index].add(delta)
            if delta.finish_reason is not None:
                num_open -= 1
        return num_open > 0

    await inbox.deliver(collect)
    ledger = generation.ledger
    headers = [(b"server-timing", server_timing(*ledger.stages_us()))] if ledger is not None else []
    exchange.send_json(format.whole(finished, usage_of(generation)), headers=headers)


def _first_stages(generation: Generation) -> Headers:
    return [(b"server-timing", server_timing(*generation.first_stages_us()))]


def usage_of(generation: Generation) -> UsageBody:
    num_prompt_tokens = sum(map(len, generation.prompts))
    num_output_tokens = sum(choice.stream.num_tokens for choice in generation.choices)
    per_prompt = len(generation.choices) // len(generation.prompts)
    cached = [choice.num_cached_tokens for choice in generation.choices[::per_prompt]]
    known = [count for count in cached if count is not None]
    return UsageBody(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(sum(known)) if len(known) == len(cached) else None,
    )
