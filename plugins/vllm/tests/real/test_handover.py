"""Prefill on one vLLM, decode on another, over NIXL; and what goes wrong after the lease."""

from __future__ import annotations

import time

import anyio
import msgspec
import pytest

from dynamo_sdk.errors import TicketExpired, TicketUnknown, TransferError
from dynamo_sdk.testing import Answer, generate_request, read_all
from dynamo_sdk.types import (
    FinishReason,
    GenerateRequest,
    KVTransferParams,
    Role,
    SamplingParams,
)
from dynamo_sdk_vllm.engine import VllmEngine
from dynamo_sdk_vllm.handover import CONNECTOR

from .conftest import LEASE_S, vllm_engine

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
PROMPTS = {
    "shorter than a block": range(10, 17),
    "whole blocks": range(10, 10 + 96),
    "with a rest": range(20, 20 + 300),
}


def as_leg(request: GenerateRequest, role: Role, ticket: KVTransferParams | None = None) -> GenerateRequest:
    return msgspec.structs.replace(
        request, request_id=f"{request.request_id}-{role}", role=role, kv_transfer=ticket
    )


async def prefilled(prefill: VllmEngine, request: GenerateRequest) -> Answer:
    answer = await read_all(prefill, as_leg(request, Role.PREFILL))
    assert answer.finish_reason is FinishReason.HANDOVER
    assert len(answer.token_ids) == 1
    return answer


async def aggregated(engine: VllmEngine, request: GenerateRequest, salt: str = "alone") -> list[int]:
    """On an engine that shares no KV with the legs: the salt keeps their blocks apart."""
    whole = msgspec.structs.replace(request, request_id=f"{request.request_id}-whole", cache_salt=salt)
    return (await read_all(engine, whole)).token_ids


@pytest.mark.parametrize("name", PROMPTS)
async def test_both_legs_give_what_one_engine_gives(prefill: VllmEngine, decode: VllmEngine, name: str):
    request = generate_request(PROMPTS[name], GREEDY)
    expected = await aggregated(decode, request)
    first = await prefilled(prefill, request)
    answer = await read_all(decode, as_leg(request, Role.DECODE, first.kv_transfer))
    assert answer.token_ids == expected
    assert first.token_ids == expected[:1], "both legs agree on the token that both compute"


async def test_a_seeded_request_gives_what_one_engine_gives(prefill: VllmEngine, decode: VllmEngine):
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=41, ignore_eos=True, logprobs=2)
    request = generate_request(range(30, 130), sampling)
    expected = await aggregated(decode, request)
    first = await prefilled(prefill, request)
    answer = await read_all(decode, as_leg(request, Role.DECODE, first.kv_transfer))
    assert answer.token_ids == expected
    assert len(answer.logprobs) == 12


async def test_a_prompt_that_ends_at_its_first_token_is_not_handed_over(prefill: VllmEngine):
    request = generate_request(range(10, 80), SamplingParams(max_tokens=1, temperature=0.0))
    answer = await read_all(prefill, as_leg(request, Role.PREFILL))
    assert answer.kv_transfer is None
    assert answer.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)


async def test_a_ticket_is_used_once(prefill: VllmEngine, decode: VllmEngine):
    request = generate_request(range(50, 150), GREEDY)
    first = await prefilled(prefill, request)
    await read_all(decode, as_leg(request, Role.DECODE, first.kv_transfer))
    with pytest.raises(TicketUnknown, match="used before"):
        await read_all(decode, as_leg(request, Role.DECODE, first.kv_transfer))


async def test_a_ticket_is_for_its_prompt(prefill: VllmEngine, decode: VllmEngine):
    first = await prefilled(prefill, generate_request(range(50, 150), GREEDY))
    with pytest.raises(TicketUnknown, match="100 tokens"):
        await read_all(
            decode, as_leg(generate_request(range(50, 151), GREEDY), Role.DECODE, first.kv_transfer)
        )


async def test_a_decode_leg_that_leaves_holds_nothing(prefill: VllmEngine, decode: VllmEngine):
    before = decode.load()
    request = generate_request(range(60, 260), msgspec.structs.replace(GREEDY, max_tokens=100))
    first = await prefilled(prefill, request)
    stream = decode.generate(as_leg(request, Role.DECODE, first.kv_transfer))
    await anext(stream)
    await stream.aclose()
    after = decode.load()
    assert before is not None
    assert after is not None
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert after.num_free_blocks == before.num_free_blocks


async def test_a_peer_that_is_gone_is_an_error_in_bounded_time(prefill: VllmEngine, decode: VllmEngine):
    request = generate_request(range(70, 270), GREEDY)
    first = await prefilled(prefill, request)
    ticket = first.kv_transfer
    assert ticket is not None
    expires_at_s, params = msgspec.msgpack.decode(ticket.payload)
    params |= {"remote_engine_id": "gone", "remote_port": 9}
    lost = KVTransferParams(connector=CONNECTOR, payload=msgspec.msgpack.encode([expires_at_s, params]))
    with anyio.fail_after(30), pytest.raises(TransferError):
        await read_all(decode, as_leg(request, Role.DECODE, lost))


async def overwrite_what_was_held(prefill: VllmEngine) -> None:
    """Wait for the end of the lease, then fill the prefill worker's blocks with other prompts."""
    await anyio.sleep(LEASE_S + 2)
    for number in range(4):
        prompt = [(7 * number + token) % 1000 + 300 for token in range(300)]
        await read_all(prefill, generate_request(prompt, GREEDY))


async def test_after_the_lease_vllm_alone_gives_wrong_tokens_and_we_refuse(
    prefill: VllmEngine, decode: VllmEngine
):
    """The hazard, and that it is closed. Without the deadline the answer is wrong, and nothing says so."""
    request = generate_request(range(400, 700), GREEDY)
    expected = await aggregated(decode, request)
    first = await prefilled(prefill, request)
    ticket = first.kv_transfer
    assert ticket is not None
    assert ticket.ttl_s is not None
    assert ticket.ttl_s < LEASE_S
    await overwrite_what_was_held(prefill)
    late = as_leg(request, Role.DECODE, ticket)
    with pytest.raises(TicketExpired):
        await read_all(decode, late)

    _, params = msgspec.msgpack.decode(ticket.payload)
    forged = msgspec.msgpack.encode([time.time() + 60, params])
    unguarded = msgspec.structs.replace(
        late, kv_transfer=KVTransferParams(connector=CONNECTOR, payload=forged), request_id="unguarded"
    )
    wrong = await read_all(decode, unguarded)
    assert wrong.finish_reason is FinishReason.LENGTH, "vLLM notices nothing"
    assert wrong.token_ids != expected, "the hazard is gone: is the deadline still needed?"

    again = await prefilled(prefill, msgspec.structs.replace(request, request_id="again"))
    retried = msgspec.structs.replace(request, request_id="retried", cache_salt="retried")
    answer = await read_all(decode, as_leg(retried, Role.DECODE, again.kv_transfer))
    assert answer.token_ids == expected, "prefilled again, it is right"


async def test_a_connector_of_ones_own_may_hold_nixl(prefill: VllmEngine):
    several = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "connectors": [{"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}]
        },
    }
    engine = vllm_engine(Role.DECODE, kv_transfer_config=several)
    try:
        await engine.start()
        request = generate_request(range(15, 215), GREEDY)
        expected = await aggregated(engine, request)
        first = await prefilled(prefill, request)
        answer = await read_all(engine, as_leg(request, Role.DECODE, first.kv_transfer))
        assert answer.token_ids == expected
    finally:
        await engine.close()
