"""A kit is worth what it catches: each fault, planted into a correct engine, fails the check named here."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from typing import ClassVar

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import EngineFailed, InvalidRequest, ModelNotFound
from dynamo_sdk.interfaces import BlockReservation, Embeds, Engine, EngineFacts, ItemSource, Promise
from dynamo_sdk.testing import ENGINE_CHECKS, FakeEngine, Outcome, check_engine
from dynamo_sdk.types import (
    BlocksRemoved,
    BlocksStored,
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEvent,
    KVEventBatch,
    KVTier,
    KVTransferParams,
    LoadSnapshot,
    LoraSpec,
    Role,
    SamplingParams,
    TokenLogprobs,
    Usage,
    num_tokens,
)

from .paged_engine import ADAPTERS, CONTEXT_LENGTH, PagedEngine, PagedSource

replace = msgspec.structs.replace


class Fault(PagedEngine):
    """A planted fault. ``caught_by`` names the check that is there for it; ``shows_in`` those that cannot
    help failing too, because what they are about needs the broken thing. No other check fails."""

    caught_by: str
    shows_in: frozenset[str] = frozenset()

    def parent(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        return PagedEngine.generate(self, request)


# Life


class NonsenseFacts(Fault):
    caught_by = "facts_make_sense"
    shows_in = frozenset({"kv_events_speak_of_real_blocks"})

    async def start(self) -> EngineFacts:
        return replace(await super().start(), block_size=0)


class CloseNeedsStart(Fault):
    caught_by = "close_without_start"
    shows_in = frozenset(
        {"close_after_failed_start", "close_after_interrupted_start", "close_twice", "generate_after_close"}
    )

    async def close(self) -> None:
        assert self.is_open or self.step, "never started"
        await super().close()


class ClosesOnce(Fault):
    caught_by = "close_twice"
    shows_in = frozenset(
        {
            "close_after_failed_start",
            "close_after_interrupted_start",
            "close_ends_what_runs",
            "generate_after_close",
            "source_raises_what_ended_it",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.was_open = False

    async def start(self) -> EngineFacts:
        self.was_open = True
        return await super().start()

    async def close(self) -> None:
        if self.was_open and not self.is_open:
            raise RuntimeError("closed already")
        await super().close()


class CannotCloseAfterHalfAStart(Fault):
    caught_by = "close_after_interrupted_start"
    shows_in = frozenset({"close_after_failed_start"})
    is_half_started = False

    async def start(self) -> EngineFacts:
        self.is_half_started = True
        facts = await super().start()
        self.is_half_started = False
        return facts

    async def close(self) -> None:
        if self.is_half_started:
            raise RuntimeError("half started")
        await super().close()


class ServesAfterClose(Fault):
    caught_by = "generate_after_close"
    shows_in = frozenset({"close_ends_what_runs", "source_raises_what_ended_it"})

    async def close(self) -> None:
        pass


class IgnoresClose(Fault):
    caught_by = "close_ends_what_runs"
    shows_in = frozenset({"source_raises_what_ended_it"})

    async def close(self) -> None:
        self.is_open = self.num_running > 0


class DrainsTooSoon(Fault):
    caught_by = "drain_waits_for_requests"

    async def drain(self) -> None:
        await checkpoint()


class NeverDrains(Fault):
    caught_by = "drain_returns_when_idle"
    shows_in = frozenset({"drain_waits_for_requests"})

    async def drain(self) -> None:
        await anyio.Event().wait()


class Hangs(Fault):
    """Listens, starts, drains, and never makes a step."""

    caught_by = "answers_a_probe"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        await anyio.Event().wait()
        yield GenerateChunk()


class FailsToStartInItsOwnWords(Fault):
    caught_by = "close_after_failed_start"

    async def start(self) -> EngineFacts:
        if self.is_broken:
            raise RuntimeError("cudaErrorNoDevice")
        return await super().start()


class LeavesSomethingBehind(Fault):
    """What an engine leaves when it is closed spoils those that start afterwards."""

    caught_by = "starts_again"
    shows_in = frozenset({"abort_during_the_transfer", "logit_bias_is_honoured"})
    num_closed = 0

    async def start(self) -> EngineFacts:
        facts = await super().start()
        self.num_before = type(self).num_closed
        return facts

    async def close(self) -> None:
        type(self).num_closed += self.is_open
        await super().close()

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        return 10 + (super().next_token(request, position, num_tokens) + self.num_before) % 54


# Output


class NoFinishReason(Fault):
    caught_by = "ends_with_one_terminal_chunk"
    shows_in = frozenset(
        {
            "finished_prefill_does_not_hand_over",
            "max_tokens_is_exact",
            "output_ends_at_the_context",
            "prefill_hands_over",
            "source_close_frees",
            "source_gives_what_generate_gives",
            "stop_token_ends_the_output",
        }
    )

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        for chunk in super().steps(request):
            yield replace(chunk, finish_reason=None)


class UsageInEveryChunk(Fault):
    caught_by = "ends_with_one_terminal_chunk"

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        for chunk in super().steps(request):
            yield replace(chunk, usage=chunk.usage or Usage(request.num_prompt_tokens, 1))


class OneTokenTooMany(Fault):
    caught_by = "max_tokens_is_exact"
    shows_in = frozenset(
        {
            "a_third_leaves_early",
            "an_id_can_be_used_again",
            "both_legs_give_the_whole_output",
            "finished_prefill_does_not_hand_over",
            "serves_32_at_once",
        }
    )

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        return super().finish_reason(request, token, position - 1)


class LengthIsCalledStop(Fault):
    caught_by = "max_tokens_is_exact"
    shows_in = frozenset({"finished_prefill_does_not_hand_over", "output_ends_at_the_context"})

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        return FinishReason.STOP if super().finish_reason(request, token, position) else None


class UsageCountsGenerated(Fault):
    caught_by = "usage_counts_tokens"

    def usage(self, request: GenerateRequest, position: int, num_cached: int) -> Usage:
        return Usage(request.num_prompt_tokens, position, num_cached)


class SwallowsTheStopToken(Fault):
    caught_by = "stop_token_ends_the_output"

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        for chunk in super().steps(request):
            yield replace(chunk, token_ids=()) if chunk.finish_reason is FinishReason.STOP else chunk


class IgnoresMinTokens(Fault):
    caught_by = "min_tokens_delays_the_stop"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        if token in request.sampling.stop_token_ids:
            return FinishReason.STOP
        return super().finish_reason(request, token, position)


class ChanceOfItsOwn(Fault):
    caught_by = "seed_reproduces"
    shows_in = frozenset(
        {"seed_continues_after_generated", "narrow_sampling_is_greedy", "source_gives_what_generate_gives"}
    )
    numbers: Iterator[int] = itertools.count()

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        token = super().next_token(request, position, num_tokens)
        return 10 + (token + next(self.numbers)) % 54 if request.sampling.temperature else token


class LogprobsOnceForAll(Fault):
    caught_by = "logprobs_match_tokens"

    def logprobs(self, request: GenerateRequest, token: int) -> tuple[TokenLogprobs, ...] | None:
        logprobs = super().logprobs(request, token)
        return None if logprobs is None else logprobs * 2


class AlternativesWorstFirst(Fault):
    caught_by = "logprobs_match_tokens"

    def logprobs(self, request: GenerateRequest, token: int) -> tuple[TokenLogprobs, ...] | None:
        if request.sampling.logprobs == 2:
            return (TokenLogprobs(-0.1, ((1, -2.4), (token, -0.1))),)
        return super().logprobs(request, token)


class LogprobsUnasked(Fault):
    caught_by = "no_logprobs_unless_asked"

    def logprobs(self, request: GenerateRequest, token: int) -> tuple[TokenLogprobs, ...] | None:
        return super().logprobs(request, token) or (TokenLogprobs(-0.1),)


class IgnoresTopK(Fault):
    caught_by = "narrow_sampling_is_greedy"

    def is_random(self, sampling: SamplingParams) -> bool:
        return super().is_random(replace(sampling, top_k=0))


class IgnoresLogitBias(Fault):
    caught_by = "logit_bias_is_honoured"

    def biased(self, sampling: SamplingParams, token: int) -> int:
        return token


class TakesAnySampling(Fault):
    caught_by = "strange_sampling_is_refused"

    def check_sampling(self, sampling: SamplingParams) -> None:
        pass


class SeedsByLegPosition(Fault):
    """The classical mistake: the position restarts at zero when the request has moved."""

    caught_by = "seed_continues_after_generated"

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        return super().next_token(request, position - request.num_generated_tokens, num_tokens)


class EmitsGeneratedAgain(Fault):
    caught_by = "continues_after_generated"
    shows_in = frozenset({"seed_continues_after_generated", "usage_counts_tokens"})

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        if request.num_generated_tokens and request.role is not Role.DECODE:
            yield GenerateChunk(tuple(request.token_ids()[request.num_prompt_tokens :]))
        yield from super().steps(request)


class OverrunsTheContext(Fault):
    caught_by = "output_ends_at_the_context"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        reason = super().finish_reason(request, token, position)
        is_full = reason is FinishReason.LENGTH and position < request.sampling.max_tokens
        return None if is_full else reason


# Company, leaving, input


class MixesUpItsRequests(Fault):
    caught_by = "company_changes_nothing"
    shows_in = frozenset({"adapters_share_a_batch", "logit_bias_is_honoured"})

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        token = super().next_token(request, position, num_tokens)
        return 10 + (token + self.num_running - 1) % 54


class CannotServeMany(Fault):
    caught_by = "serves_32_at_once"
    shows_in = frozenset({"a_third_leaves_early", "company_changes_nothing"})

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        if self.num_running > 24:
            return FinishReason.LENGTH
        return super().finish_reason(request, token, position)


class LeaksWhenClosed(Fault):
    caught_by = "close_mid_stream"
    shows_in = frozenset(
        {"a_third_leaves_early", "abort_after_the_transfer", "close_at_the_end", "source_refuses_at_open"}
    )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        stream = self.parent(request)
        try:
            async for chunk in stream:
                yield chunk
        except GeneratorExit:
            self.free.pop()
            await stream.aclose()
            raise


class LeaksWhenCancelled(Fault):
    caught_by = "cancel_mid_stream"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        has_begun = False
        try:
            async with aclosing(self.parent(request)) as chunks:
                async for chunk in chunks:
                    has_begun = True
                    yield chunk
        except GeneratorExit:
            raise
        except BaseException:
            if has_begun and self.is_open:
                self.num_running += 1
            raise


class LeaksBeforeTheFirstToken(Fault):
    caught_by = "cancel_before_first_token"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running += 1
        await checkpoint()
        self.num_running -= 1
        async with aclosing(self.parent(request)) as chunks:
            async for chunk in chunks:
                yield chunk


class FreesWhenTheStreamIsReadOut(Fault):
    """Frees after the last chunk, but only if the reader asks once more."""

    caught_by = "close_at_the_end"
    shows_in = frozenset(
        {
            "a_third_leaves_early",
            "abort_after_the_transfer",
            "cancel_before_first_token",
            "cancel_mid_stream",
            "close_mid_stream",
            "empty_prompt_is_refused",
            "long_prompt_is_refused",
            "unknown_adapters_are_refused",
            "unloading_lets_requests_end",
            "source_refuses_at_open",
        }
    )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running += 1
        last = GenerateChunk()
        async with aclosing(self.parent(request)) as chunks:
            async for chunk in chunks:
                last = chunk
                if chunk.finish_reason is None:
                    yield chunk
        yield last
        self.num_running -= 1


class ReservesBeforeTheFirstPull(Fault):
    caught_by = "close_before_first_pull"
    shows_in = frozenset({"a_third_leaves_early"})

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running += 1
        return self.counted(request)

    async def counted(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running -= 1
        async with aclosing(self.parent(request)) as chunks:
            async for chunk in chunks:
                yield chunk


class StarvesThoseWhoStay(Fault):
    caught_by = "a_third_leaves_early"
    shows_in = frozenset({"adapters_share_a_batch"})
    has_seen_someone_leave = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        try:
            async with aclosing(self.parent(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    if self.has_seen_someone_leave and self.num_running > 1:
                        yield GenerateChunk(finish_reason=FinishReason.LENGTH, usage=Usage(12, 1))
                        return
        except GeneratorExit:
            self.has_seen_someone_leave = True
            raise


class RefusesARetry(Fault):
    caught_by = "an_id_can_be_used_again"

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def check(self, request: GenerateRequest) -> None:
        super().check(request)
        if request.request_id in self.seen and request.role is Role.AGGREGATED:
            raise InvalidRequest(f"{request.request_id} was there before")
        self.seen.add(request.request_id)


class AcceptsAnEmptyPrompt(Fault):
    caught_by = "empty_prompt_is_refused"
    shows_in = frozenset({"source_refuses_at_open"})

    def check(self, request: GenerateRequest) -> None:
        if request.prompt:
            super().check(request)


class TruncatesALongPrompt(Fault):
    caught_by = "long_prompt_is_refused"

    def check(self, request: GenerateRequest) -> None:
        super().check(self.shortened(request))

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        yield from super().steps(self.shortened(request))

    def shortened(self, request: GenerateRequest) -> GenerateRequest:
        is_long = request.num_prompt_tokens > CONTEXT_LENGTH
        return replace(request, prompt=request.prompt[:400]) if is_long else request


class UntypedRefusal(Fault):
    caught_by = "long_prompt_is_refused"

    def check(self, request: GenerateRequest) -> None:
        if request.num_prompt_tokens > 1020:
            raise ValueError("too long")
        super().check(request)


class DiesOfAStrangeToken(Fault):
    caught_by = "strange_token_hurts_nobody"
    is_dead = False

    def check(self, request: GenerateRequest) -> None:
        super().check(request)
        self.is_dead |= max(request.token_ids()) > 2**31
        if self.is_dead:
            raise EngineFailed("device-side assert")


class KnowsItsRanksBadly(Fault):
    caught_by = "ranks_are_those_declared"
    dp_size = 2

    def check(self, request: GenerateRequest) -> None:
        super().check(replace(request, dp_rank=None))


# Sources


class SourceLosesTheLastToken(Fault):
    caught_by = "source_gives_what_generate_gives"

    def open(self, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        sampling = replace(request.sampling, max_tokens=max(1, request.sampling.max_tokens - 1))
        return super().open(replace(request, sampling=sampling))


class SourceRefusesLate(Fault):
    caught_by = "source_refuses_at_open"

    def open(self, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        return PagedSource(self.steps(request))


class SourceLeaks(Fault):
    caught_by = "source_close_frees"

    def open(self, request: GenerateRequest) -> ItemSource[GenerateChunk]:
        source = super().open(request)
        source.close = lambda: None  # type: ignore[method-assign]
        return source


class SourceEndsInPeace(Fault):
    caught_by = "source_raises_what_ended_it"

    def adapted_steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        try:
            yield from super().adapted_steps(request)
        except EngineFailed:
            if sys._getframe(1).f_code.co_name != "take":
                raise
            yield GenerateChunk(finish_reason=FinishReason.LENGTH)


# The prefix cache


class ReportsNoHits(Fault):
    caught_by = "prefix_hit_is_reported"

    def num_cached(self, request: GenerateRequest, tokens: list[int]) -> int:
        return 0


class HitsTheFirstTime(Fault):
    caught_by = "prefix_hit_is_reported"
    shows_in = frozenset({"cache_salt_keeps_prompts_apart"})

    def num_cached(self, request: GenerateRequest, tokens: list[int]) -> int:
        if request.cache_salt or request.lora:
            return super().num_cached(request, tokens)
        return request.num_prompt_tokens // 4 * 4


class IgnoresTheSalt(Fault):
    caught_by = "cache_salt_keeps_prompts_apart"

    def name(self, request: GenerateRequest, tokens: list[int], end: int) -> int:
        return super().name(replace(request, cache_salt=None), tokens, end)


class ServesAnyLora(Fault):
    """It drops what it does not know, as a server does that reads an extra field of a request."""

    caught_by = "lora_is_refused_or_kept_apart"
    shows_in = frozenset({"unknown_adapters_are_refused", "unloading_lets_requests_end"})

    def known(self, request: GenerateRequest) -> GenerateRequest:
        is_there = request.lora in {adapter.name for adapter in self.loras()}
        return request if is_there else replace(request, lora=None)

    def check(self, request: GenerateRequest) -> None:
        super().check(self.known(request))

    def adapted_steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        return super().adapted_steps(self.known(request))


# Adapters


class BlamesTheField(Fault):
    caught_by = "unknown_adapters_are_refused"
    shows_in = frozenset({"unloading_lets_requests_end"})

    def check(self, request: GenerateRequest) -> None:
        try:
            super().check(request)
        except ModelNotFound as error:
            raise InvalidRequest(error.message, param="lora") from error


class LoadsWhatIsNotThere(Fault):
    caught_by = "unknown_adapters_are_refused"

    async def load_lora(self, lora: LoraSpec) -> None:
        is_there = await anyio.Path(lora.path).is_dir()
        await super().load_lora(lora if is_there else replace(lora, path="/"))


class AppliesNothing(Fault):
    caught_by = "adapters_answer_in_their_own_way"

    def weight(self, request: GenerateRequest) -> int:
        return 0


class SharesKVWithTheModel(Fault):
    caught_by = "adapters_answer_in_their_own_way"
    shows_in = frozenset({"a_used_name_starts_anew"})

    def name(self, request: GenerateRequest, tokens: list[int], end: int) -> int:
        return super().name(replace(request, request_id="of nobody"), tokens, end)


class AdaptsTheWholeBatch(Fault):
    caught_by = "adapters_share_a_batch"

    def weight(self, request: GenerateRequest) -> int:
        return sum(adapter.weight for adapter in self.adapter_of.values() if adapter is not None)


class UnloadsAtOnce(Fault):
    """Who runs goes on without it."""

    caught_by = "unloading_lets_requests_end"

    async def unload_lora(self, name: str) -> None:
        self.adapter_of = dict.fromkeys(self.adapter_of)
        if self.adapters._adapters.pop(name, None) is None:
            raise ModelNotFound(name)


class FindsTheKVOfTheOldWeights(Fault):
    caught_by = "a_used_name_starts_anew"

    def name(self, request: GenerateRequest, tokens: list[int], end: int) -> int:
        return hash((request.lora, request.cache_salt, *tokens[:end]))


class OverwritesWhoHasTheName(Fault):
    caught_by = "a_used_name_starts_anew"

    async def load_lora(self, lora: LoraSpec) -> None:
        if lora.name in {other.name for other in self.loras()}:
            await self.unload_lora(lora.name)
        await super().load_lora(lora)


class DecodesWithoutIt(Fault):
    caught_by = "adapters_are_handed_over"

    def weight(self, request: GenerateRequest) -> int:
        return 0 if request.role is Role.DECODE else super().weight(request)


# Two legs


class PrefillGoesOn(Fault):
    caught_by = "prefill_hands_over"
    shows_in = frozenset(
        {
            "abort_after_the_transfer",
            "adapters_are_handed_over",
            "both_legs_give_the_whole_output",
            "lost_peer_is_an_error_in_time",
            "release_is_idempotent",
        }
    )

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        is_prefill = request.role is Role.PREFILL
        yield from super().steps(replace(request, role=Role.AGGREGATED) if is_prefill else request)


class AlwaysHandsOver(Fault):
    caught_by = "finished_prefill_does_not_hand_over"

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        for chunk in super().steps(request):
            is_prefill = request.role is Role.PREFILL
            yield (
                replace(chunk, finish_reason=FinishReason.HANDOVER)
                if (is_prefill and chunk.finish_reason)
                else chunk
            )


class ReadsTheWrongBlocks(Fault):
    caught_by = "both_legs_give_the_whole_output"
    shows_in = frozenset({"adapters_are_handed_over"})

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        return super().held_blocks(request_id)[::-1]


class ReleasesOnce(Fault):
    caught_by = "release_is_idempotent"

    def release_blocks(self, request_id: str) -> None:
        self.free += self.owned.pop(request_id)


class ReservesTooLittle(Fault):
    caught_by = "reservation_can_be_given_back"
    shows_in = frozenset({"adapters_are_handed_over", "both_legs_give_the_whole_output"})

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        reservation = await super().reserve_blocks(request)
        return BlockReservation(block_ids=reservation.block_ids[1:], num_cached_blocks=0)


class HoldsForEver(Fault):
    """Prefill's blocks go only when somebody has asked for them."""

    caught_by = "abort_before_the_transfer"
    shows_in = frozenset({"abort_during_the_transfer", "prefill_hands_over"})

    def __init__(self) -> None:
        super().__init__()
        self.unread: set[str] = set()

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        for chunk in super().steps(request):
            if chunk.finish_reason is FinishReason.HANDOVER:
                self.unread.add(request.request_id)
            yield chunk

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        self.unread.discard(request_id)
        return super().held_blocks(request_id)

    def release_blocks(self, request_id: str) -> None:
        if request_id not in self.unread:
            super().release_blocks(request_id)


class LosesWhatWasFilledHalfway(Fault):
    caught_by = "abort_during_the_transfer"
    is_written = False

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        self.memory.on_write = lambda: setattr(self, "is_written", True)
        return await super().reserve_blocks(request)

    def steps(self, request: GenerateRequest) -> Generator[GenerateChunk, None, None]:
        self.is_written = False
        return super().steps(request)

    def release_blocks(self, request_id: str) -> None:
        if self.is_written:
            self.owned[request_id].pop()
        super().release_blocks(request_id)


class LeaksAfterATransfer(Fault):
    caught_by = "abort_after_the_transfer"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        stream = self.parent(request)
        try:
            async for chunk in stream:
                yield chunk
        except GeneratorExit:
            await stream.aclose()
            if request.role is Role.DECODE:
                self.free.pop()
            raise


class LeaksAWaitingReservation(Fault):
    caught_by = "cancelled_reservation_leaves_nothing"

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        try:
            return await super().reserve_blocks(request)
        except BaseException:
            self.num_running += 1
            raise


# Feeds


class SkipsASequenceNumber(Fault):
    caught_by = "kv_events_have_no_gap"

    def publish(self, event: KVEvent) -> None:
        super().publish(event)
        self.sequence += self.sequence == 3


class OrphanBlocks(Fault):
    caught_by = "kv_events_name_parents_first"

    def stored_event(self, block_hash: int) -> BlocksStored:
        event = super().stored_event(block_hash)
        return event if event.parent_hash is None else replace(event, parent_hash=b"nobody")


class HalfABlock(Fault):
    caught_by = "kv_events_speak_of_real_blocks"

    def stored_event(self, block_hash: int) -> BlocksStored:
        event = super().stored_event(block_hash)
        return replace(event, token_ids=event.token_ids[:-1])


class BlocksOfAnotherSize(Fault):
    caught_by = "kv_events_speak_of_real_blocks"

    def stored_event(self, block_hash: int) -> BlocksStored:
        event = super().stored_event(block_hash)
        return replace(event, block_size=event.block_size * 2, token_ids=event.token_ids * 2)


class EventsOfNoRank(Fault):
    caught_by = "kv_events_speak_of_real_blocks"
    rank = 1


class RemovesTwice(Fault):
    caught_by = "kv_events_remove_what_was_stored"

    def store(self, block: int, request: GenerateRequest, tokens: list[int], end: int) -> None:
        super().store(block, request, tokens, end)
        self.publish(BlocksRemoved(block_hashes=(4711,)))


class EvictsInSilence(Fault):
    caught_by = "kv_events_announce_evictions"

    def evict(self, block_hash: int) -> None:
        del self.stored[block_hash]


class HostBlocksFromNowhere(Fault):
    """It copies to host memory, and says so only when the block on the device is gone."""

    caught_by = "kv_events_follow_moves"

    def publish(self, event: KVEvent) -> None:
        super().publish(event)
        if isinstance(event, BlocksStored):
            super().publish(BlocksRemoved(block_hashes=event.block_hashes))
            super().publish(replace(event, tier=KVTier.HOST))

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        (batch,) = super().kv_snapshot()
        events = tuple(replace(event, tier=KVTier.HOST) for event in batch.events)
        return (replace(batch, events=events),)


class SaysItIsIdle(Fault):
    caught_by = "load_follows_the_requests"

    def load(self) -> LoadSnapshot:
        return replace(super().load(), num_running=0)


class NegativeFigures(Fault):
    caught_by = "metrics_are_plausible"

    def report(self, *, num_prefill_tokens: int) -> None:
        for listener in self.metric_listeners:
            listener(
                ForwardPassMetrics(
                    step=self.step,
                    at_s=0.0,
                    wall_s=-1.0,
                    num_prefill_tokens=num_prefill_tokens,
                    num_prefill_requests=1,
                )
            )
        self.step += 1


class StaleSnapshot(Fault):
    caught_by = "kv_snapshot_equals_the_events"

    def kv_snapshot(self) -> tuple[KVEventBatch, ...]:
        (batch,) = super().kv_snapshot()
        return (replace(batch, events=batch.events[:-1]),)


class ReportsAStepTwice(Fault):
    caught_by = "metrics_count_steps"

    def report(self, *, num_prefill_tokens: int) -> None:
        super().report(num_prefill_tokens=num_prefill_tokens)
        self.step -= self.step == 3


class ForgetsThePrefill(Fault):
    caught_by = "metrics_count_steps"

    def report(self, *, num_prefill_tokens: int) -> None:
        for listener in self.metric_listeners:
            listener(ForwardPassMetrics(step=self.step, at_s=0.0, wall_s=0.0))
        self.step += 1


class LongVectors(Fault, Embeds):
    caught_by = "embeddings_have_length_one"

    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        if not request.prompt:
            raise InvalidRequest("empty")
        return EmbedOutput(vector=[1.0, 1.0], num_prompt_tokens=num_tokens(request.prompt))


class EmbedsNothing(Fault, Embeds):
    caught_by = "empty_embedding_is_refused"

    async def embed(self, request: EmbedRequest) -> EmbedOutput:
        return EmbedOutput(vector=[1.0, 0.0], num_prompt_tokens=num_tokens(request.prompt))


class PullsFromTheDead(FakeEngine):
    """Its decode leg takes what lies in the memory of a peer that is gone: wrong tokens, and no error."""

    caught_by = "lost_peer_is_an_error_in_time"
    shows_in: frozenset[str] = frozenset()
    alive: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        super().__init__(range(30, 50), ticket=KVTransferParams(connector="pull", payload=b"%d" % id(self)))

    async def start(self) -> EngineFacts:
        self.alive.add(id(self))
        return await super().start()

    async def close(self) -> None:
        self.alive.discard(id(self))
        await super().close()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        ticket = request.kv_transfer
        is_wrong = ticket is not None and int(ticket.payload) not in self.alive
        async with aclosing(super().generate(request)) as chunks:
            async for chunk in chunks:
                yield replace(chunk, token_ids=tuple(11 for _ in chunk.token_ids)) if is_wrong else chunk


FAULTS: list[type[Fault] | type[PullsFromTheDead]] = [*Fault.__subclasses__(), PullsFromTheDead]


@pytest.mark.anyio
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_the_fault_is_caught_by_its_check(fault: type[Fault] | type[PullsFromTheDead]) -> None:
    def unstartable(role: Role) -> Engine:
        engine = fault()
        engine.is_broken = True  # type: ignore[union-attr]
        return engine

    is_paged = issubclass(fault, PagedEngine)
    report = await check_engine(
        lambda role: fault(),
        unstartable=unstartable if is_paged else None,
        loras=ADAPTERS,
        probe_timeout_s=0.1 if fault is Hangs else 30.0,
        timeout_s=2.0 if fault is NeverDrains else 30.0,
    )
    assert {result.name for result in report.failed} == {fault.caught_by} | fault.shows_in, report
    assert all(result.place and ".py:" in result.place for result in report.failed)


def test_every_check_has_caught_something() -> None:
    assert {fault.caught_by for fault in FAULTS} == {check.__name__ for check in ENGINE_CHECKS}


class CannotAnswer(Fault):
    """One mistake on the way of every token: told once, and not by each check that needs one."""

    caught_by = "answers_a_probe"

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        raise KeyError("a mistake")


@pytest.mark.anyio
async def test_what_breaks_every_answer_is_said_once() -> None:
    report = await check_engine(lambda role: CannotAnswer())
    assert [result.name for result in report.failed] == ["answers_a_probe"]
    skipped = {result.name: result.detail for result in report.skipped}
    assert skipped["max_tokens_is_exact"] == "the engine does not answer: see answers_a_probe"


@pytest.mark.anyio
async def test_a_hung_engine_is_not_waited_for_again() -> None:
    report = await check_engine(lambda role: Hangs(), probe_timeout_s=0.1, timeout_s=30.0)
    skipped = {result.name: result.detail for result in report.skipped}
    assert skipped["max_tokens_is_exact"] == "the engine hangs: see answers_a_probe"


@pytest.mark.anyio
async def test_what_an_engine_says_of_itself_is_no_failure_but_is_shown() -> None:
    class SaysSo(SeedsByLegPosition):
        async def start(self) -> EngineFacts:
            reason = "positions start at zero"
            return replace(await super().start(), unclaimed={Promise.SEED_BY_POSITION: reason})

    report = await check_engine(lambda role: SaysSo())
    assert report.is_ok, report
    (result,) = report.having(Outcome.UNCLAIMED)
    assert (result.name, result.detail) == ("seed_continues_after_generated", "positions start at zero")


@pytest.mark.anyio
async def test_what_holds_has_passed_though_it_is_not_claimed() -> None:
    class TooModest(PagedEngine):
        async def start(self) -> EngineFacts:
            return replace(await super().start(), unclaimed={Promise.SEED_BY_POSITION: "who knows"})

    report = await check_engine(lambda role: TooModest())
    assert report.is_ok, report
    assert not report.having(Outcome.UNCLAIMED)
