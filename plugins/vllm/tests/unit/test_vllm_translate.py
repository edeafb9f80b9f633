"""Requests, outputs and errors, without vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from dynamo_sdk.errors import (
    DynamoError,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    TransferError,
)
from dynamo_sdk.testing import generate_request
from dynamo_sdk.types import (
    FinishReason,
    GenerateRequest,
    KVTransferParams,
    Role,
    SamplingParams,
    TokenLogprobs,
)
from dynamo_sdk_vllm.translate import (
    ChunkMaker,
    error_of,
    leg_timing,
    sampling_arguments,
)

TICKET = KVTransferParams(connector="vllm-nixl", payload=b"")


@dataclass
class FakeLogprob:
    logprob: float
    rank: int | None = None


@dataclass
class FakeCompletion:
    token_ids: Sequence[int] = ()
    logprobs: Sequence[Mapping[int, FakeLogprob]] | None = None
    finish_reason: str | None = None


@dataclass
class FakeOutput:
    """As an old version makes it: nothing about cached tokens or times."""

    outputs: Sequence[FakeCompletion]
    finished: bool = False


@dataclass
class FakeTimes:
    queued_ts: float = 10.0
    scheduled_ts: float = 10.5
    first_token_ts: float = 11.5
    last_token_ts: float = 14.0


@dataclass
class NewOutput(FakeOutput):
    num_cached_tokens: int | None = None
    metrics: FakeTimes = field(default_factory=FakeTimes)


def last(reason: str, *token_ids: int) -> FakeOutput:
    return FakeOutput([FakeCompletion(token_ids, finish_reason=reason)], finished=True)


def request(role: Role = Role.AGGREGATED, *, num_generated: int = 0, **sampling: object) -> GenerateRequest:
    params = msgspec.convert({"max_tokens": 8, "temperature": 0.0, **sampling}, SamplingParams)
    return generate_request(range(1, 11), params, generated=range(num_generated), role=role)


def arguments(asked: GenerateRequest, *, is_handover: bool = False) -> dict[str, object]:
    return sampling_arguments(asked, is_handover=is_handover, kv_transfer=None)


def test_greedy_needs_no_seed_and_nothing_is_detokenized():
    made = arguments(request(seed=7))
    assert (made["max_tokens"], made["seed"], made["top_k"], made["logit_bias"]) == (8, None, -1, None)
    assert made["detokenize"] is False
    assert made["extra_args"] is None


def test_what_was_generated_before_counts_against_the_limits():
    made = arguments(request(num_generated=3, min_tokens=5, temperature=1.0, seed=2))
    assert (made["max_tokens"], made["min_tokens"]) == (5, 2)
    assert arguments(request(num_generated=6, min_tokens=5))["min_tokens"] == 0


def test_seeds_fit_into_63_bits():
    assert arguments(request(temperature=1.0, seed=2**64 - 1))["seed"] == 2**63 - 1


def test_a_prefill_leg_asks_for_one_token_that_may_not_be_a_stop_before_min_tokens():
    made = sampling_arguments(
        request(Role.PREFILL, min_tokens=4), is_handover=True, kv_transfer={"do_remote_decode": True}
    )
    assert (made["max_tokens"], made["min_tokens"]) == (1, 1)
    assert made["extra_args"] == {"kv_transfer_params": {"do_remote_decode": True}}


def test_deltas_of_several_tokens_sum_to_the_output():
    maker = ChunkMaker(request())
    chunks = [
        maker.chunk(FakeOutput([FakeCompletion([5, 6])])),
        maker.chunk(FakeOutput([FakeCompletion()])),
        maker.chunk(last("length", 7)),
    ]
    assert [chunk.token_ids if chunk else None for chunk in chunks] == [(5, 6), None, (7,)]
    assert chunks[-1] is not None
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.num_prompt_tokens, chunks[-1].usage.num_output_tokens) == (10, 3)
    assert chunks[-1].timing is None, "this version says no times"


def test_times_and_cached_tokens_where_the_version_says_them():
    output = NewOutput([FakeCompletion([1], finish_reason="stop")], finished=True, num_cached_tokens=8)
    chunk = ChunkMaker(request()).chunk(output)
    assert chunk is not None
    assert chunk.usage is not None
    assert chunk.timing is not None
    assert chunk.usage.num_cached_tokens == 8
    assert (chunk.timing.queue_s, chunk.timing.prefill_s, chunk.timing.decode_s) == (0.5, 1.0, 2.5)
    assert leg_timing(FakeTimes(scheduled_ts=0.0)) is None


def test_a_ticket_makes_the_last_chunk_a_handover():
    chunk = ChunkMaker(request(Role.PREFILL)).chunk(last("length", 4), TICKET)
    assert chunk is not None
    assert (chunk.token_ids, chunk.finish_reason, chunk.kv_transfer) == ((4,), FinishReason.HANDOVER, TICKET)


def test_logprobs_are_best_first_and_the_sampled_token_may_be_unlikely():
    entry = {3: FakeLogprob(-4.0), 1: FakeLogprob(-0.5), 2: FakeLogprob(-1.5)}
    output = FakeOutput([FakeCompletion([3], [entry])])
    chunk = ChunkMaker(request(logprobs=2)).chunk(output)
    assert chunk is not None
    assert chunk.logprobs == (TokenLogprobs(-4.0, ((1, -0.5), (2, -1.5))),)
    chunk = ChunkMaker(request(logprobs=0)).chunk(output)
    assert chunk is not None
    assert chunk.logprobs == (TokenLogprobs(-4.0),)


def test_what_vllm_ends_by_itself_is_an_error():
    with pytest.raises(EngineFailed, match="aborted"):
        ChunkMaker(request()).chunk(last("abort"))
    with pytest.raises(EngineFailed):
        ChunkMaker(request()).chunk(last("error"))
    fetching = msgspec.structs.replace(request(Role.DECODE), kv_transfer=TICKET)
    with pytest.raises(TransferError):
        ChunkMaker(fetching).chunk(last("error"))


class VLLMClientError(Exception):
    """As new versions name it; old ones raise ``ValueError``."""


class QueueOverflowError(VLLMClientError):
    pass


class EngineDeadError(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (VLLMClientError("no such token"), InvalidRequest),
        (ValueError("no such token"), InvalidRequest),
        (QueueOverflowError(), Overloaded),
        (EngineDeadError("see above"), EngineFailed),
        (TransferError("ours"), TransferError),
    ],
)
def test_errors_of_old_and_new_versions(raised: Exception, expected: type[DynamoError]):
    assert type(error_of(raised)) is expected
