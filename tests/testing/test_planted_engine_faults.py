"""A kit is worth what it catches: each fault, planted into a correct engine, fails the check named here."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from dynamo_sdk.errors import InvalidRequest
from dynamo_sdk.interfaces import BlockReservation, Embeds, EngineFacts
from dynamo_sdk.testing import ENGINE_CHECKS, check_engine
from dynamo_sdk.types import (
    BlocksStored,
    EmbedOutput,
    EmbedRequest,
    FinishReason,
    ForwardPassMetrics,
    GenerateChunk,
    GenerateRequest,
    KVEvent,
    KVEventBatch,
    Role,
    TokenLogprobs,
    Usage,
    num_tokens,
)

from .paged_engine import PagedEngine

replace = msgspec.structs.replace


class Fault(PagedEngine):
    """A planted fault; ``caught_by`` names the check that must fail."""

    caught_by: str

    def parent(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        return PagedEngine.generate(self, request)


# Life


class NonsenseFacts(Fault):
    caught_by = "facts_make_sense"

    async def start(self) -> EngineFacts:
        return replace(await super().start(), block_size=0)


class CloseNeedsStart(Fault):
    caught_by = "close_without_start"

    async def close(self) -> None:
        assert self.is_open or self.step, "never started"
        await super().close()


class ClosesOnce(Fault):
    caught_by = "close_twice"

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

    async def close(self) -> None:
        pass


class IgnoresClose(Fault):
    caught_by = "close_ends_what_runs"

    async def close(self) -> None:
        self.is_open = self.num_running > 0


class DrainsTooSoon(Fault):
    caught_by = "drain_waits_for_requests"

    async def drain(self) -> None:
        await checkpoint()


class NeverDrains(Fault):
    caught_by = "drain_returns_when_idle"

    async def drain(self) -> None:
        await anyio.Event().wait()


# Output


class NoFinishReason(Fault):
    caught_by = "ends_with_one_terminal_chunk"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async for chunk in self.parent(request):
            yield replace(chunk, finish_reason=None)


class UsageInEveryChunk(Fault):
    caught_by = "ends_with_one_terminal_chunk"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async for chunk in self.parent(request):
            yield replace(chunk, usage=Usage(request.num_prompt_tokens, 1))


class OneTokenTooMany(Fault):
    caught_by = "max_tokens_is_exact"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        return super().finish_reason(request, token, position - 1)


class LengthIsCalledStop(Fault):
    caught_by = "max_tokens_is_exact"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        return FinishReason.STOP if super().finish_reason(request, token, position) else None


class UsageCountsGenerated(Fault):
    caught_by = "usage_counts_tokens"

    def usage(self, request: GenerateRequest, position: int) -> Usage:
        return Usage(request.num_prompt_tokens, position)


class SwallowsTheStopToken(Fault):
    caught_by = "stop_token_ends_the_output"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async for chunk in self.parent(request):
            yield replace(chunk, token_ids=()) if chunk.finish_reason is FinishReason.STOP else chunk


class IgnoresMinTokens(Fault):
    caught_by = "min_tokens_delays_the_stop"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        if token in request.sampling.stop_token_ids:
            return FinishReason.STOP
        return super().finish_reason(request, token, position)


class ChanceOfItsOwn(Fault):
    caught_by = "seed_reproduces"
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


class SeedsByLegPosition(Fault):
    """The classical mistake: the position restarts at zero when the request has moved."""

    caught_by = "continues_after_generated"

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        return super().next_token(request, position - request.num_generated_tokens, num_tokens)


class EmitsGeneratedAgain(Fault):
    caught_by = "continues_after_generated"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        if request.num_generated_tokens and request.role is not Role.DECODE:
            yield GenerateChunk(tuple(request.token_ids()[request.num_prompt_tokens :]))
        async for chunk in self.parent(request):
            yield chunk


class OverrunsTheContext(Fault):
    caught_by = "output_ends_at_the_context"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        return FinishReason.LENGTH if position >= request.sampling.max_tokens else None


# Company, leaving, input


class MixesUpItsRequests(Fault):
    caught_by = "company_changes_nothing"

    def next_token(self, request: GenerateRequest, position: int, num_tokens: int) -> int:
        token = super().next_token(request, position, num_tokens)
        return 10 + (token + self.num_running - 1) % 54


class CannotServeMany(Fault):
    caught_by = "serves_32_at_once"

    def finish_reason(self, request: GenerateRequest, token: int, position: int) -> FinishReason | None:
        if self.num_running > 24:
            return FinishReason.LENGTH
        return super().finish_reason(request, token, position)


class LeaksWhenClosed(Fault):
    caught_by = "close_mid_stream"

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
            async for chunk in self.parent(request):
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
        async for chunk in self.parent(request):
            yield chunk


class FreesWhenTheStreamIsReadOut(Fault):
    """Frees after the last chunk, but only if the reader asks once more."""

    caught_by = "close_at_the_end"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running += 1
        last = GenerateChunk()
        async for chunk in self.parent(request):
            last = chunk
            if chunk.finish_reason is None:
                yield chunk
        yield last
        self.num_running -= 1


class ReservesBeforeTheFirstPull(Fault):
    caught_by = "close_before_first_pull"

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running += 1
        return self.counted(request)

    async def counted(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        self.num_running -= 1
        async for chunk in self.parent(request):
            yield chunk


class StarvesThoseWhoStay(Fault):
    caught_by = "a_third_leaves_early"
    has_seen_someone_leave = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        try:
            async for chunk in self.parent(request):
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

    def check(self, request: GenerateRequest) -> None:
        if request.prompt:
            super().check(request)


class TruncatesALongPrompt(Fault):
    caught_by = "long_prompt_is_refused"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        if num_tokens(request.prompt) > 1000:
            request = replace(request, prompt=request.prompt[:400])
        async for chunk in self.parent(request):
            yield chunk


class UntypedRefusal(Fault):
    caught_by = "long_prompt_is_refused"

    def check(self, request: GenerateRequest) -> None:
        if request.num_prompt_tokens > 1020:
            raise ValueError("too long")
        super().check(request)


# Two legs


class PrefillGoesOn(Fault):
    caught_by = "prefill_hands_over"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        is_prefill = request.role is Role.PREFILL
        async for chunk in self.parent(replace(request, role=Role.AGGREGATED) if is_prefill else request):
            yield chunk


class AlwaysHandsOver(Fault):
    caught_by = "finished_prefill_does_not_hand_over"

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async for chunk in self.parent(request):
            is_prefill = request.role is Role.PREFILL
            yield (
                replace(chunk, finish_reason=FinishReason.HANDOVER)
                if (is_prefill and chunk.finish_reason)
                else chunk
            )


class ReadsTheWrongBlocks(Fault):
    caught_by = "both_legs_give_the_whole_output"

    def held_blocks(self, request_id: str) -> tuple[int, ...]:
        return super().held_blocks(request_id)[::-1]


class ReleasesOnce(Fault):
    caught_by = "release_is_idempotent"

    def release_blocks(self, request_id: str) -> None:
        self.free += self.owned.pop(request_id)


class ReservesTooLittle(Fault):
    caught_by = "reservation_can_be_given_back"

    async def reserve_blocks(self, request: GenerateRequest) -> BlockReservation:
        reservation = await super().reserve_blocks(request)
        return BlockReservation(block_ids=reservation.block_ids[1:], num_cached_blocks=0)


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
    caught_by = "kv_events_name_parents_first"

    def stored_event(self, block_hash: int) -> BlocksStored:
        event = super().stored_event(block_hash)
        return replace(event, token_ids=event.token_ids[:-1])


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


FAULTS = Fault.__subclasses__()


@pytest.mark.anyio
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_the_fault_is_caught_by_its_check(fault: type[Fault]) -> None:
    report = await check_engine(lambda role: fault(), timeout_s=0.5 if fault is NeverDrains else 30.0)
    failed = {result.name for result in report.failed}
    assert fault.caught_by in failed, report
    # A fault may break neighbours too, but a kit that blames everything helps nobody.
    assert len(failed) <= 12, report


def test_every_check_has_caught_something() -> None:
    assert {fault.caught_by for fault in FAULTS} == {check.__name__ for check in ENGINE_CHECKS}
