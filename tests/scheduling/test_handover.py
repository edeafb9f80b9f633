"""Held and reserved blocks: the two ends of a hand-over."""

import pytest

from dynamo_sdk.scheduling import SequenceState
from dynamo_sdk.types import FinishReason, Role

from .fake_model import expected_output, make_request
from .worker import Worker, sizes


def test_hand_over_from_worker_to_worker():
    prefill, decode = Worker(), Worker()
    whole = make_request("x", range(7), max_tokens=5)
    prefill.add("x", range(7), max_tokens=5, role=Role.PREFILL)
    _, (first,) = prefill.step()
    assert first.finish_reason is FinishReason.HANDOVER
    assert prefill.scheduler.state_of("x") is SequenceState.HELD
    assert not prefill.scheduler.has_work

    request = make_request("x", range(7), generated=[first.token_id], max_tokens=5, role=Role.DECODE)
    reservation = decode.scheduler.reserve(request)
    held = prefill.scheduler.held_blocks("x")
    assert len(held) == len(reservation.block_ids) == 4
    for source, target in zip(held, reservation.block_ids, strict=True):
        decode.model.memory[target] = list(prefill.model.memory[source])
    prefill.scheduler.release("x")
    prefill.scheduler.release("x")
    assert prefill.scheduler.pool.num_free_blocks == 16

    decode.scheduler.add(request)
    assert sizes(decode.scheduler.schedule()) == {"x": 1}
    decode.scheduler.abort("x")
    assert [first.token_id, *expected_output(request, decode.config)[0]] == expected_output(
        whole, decode.config
    )[0]


def test_a_reservation_names_what_it_holds_already():
    worker = Worker()
    worker.add("a", range(6), max_tokens=1)
    worker.step()
    request = make_request("b", range(6), generated=[5], role=Role.DECODE)
    reservation = worker.scheduler.reserve(request)
    assert reservation.num_cached_blocks == len(reservation.block_ids) == 3
    worker.scheduler.add(request)
    _, (update,) = worker.step()
    assert update.num_cached_tokens == 6


def test_a_whole_prompt_without_output_computes_its_last_token():
    worker = Worker()
    request = make_request("r", range(6), role=Role.DECODE, max_tokens=3)
    reservation = worker.scheduler.reserve(request)
    assert len(reservation.block_ids) == 3
    worker.fill(request, reservation)
    worker.scheduler.add(request)
    step = worker.scheduler.schedule()
    assert step.sequences[0].token_ids == (5,)
    assert (step.num_prefill_tokens, step.num_decode_requests) == (1, 0)


def test_other_tokens_than_reserved_for_are_refused():
    worker = Worker()
    worker.scheduler.reserve(make_request("r", range(6), role=Role.DECODE))
    with pytest.raises(ValueError, match="other tokens"):
        worker.add("r", range(5), role=Role.DECODE)
    assert worker.scheduler.state_of("r") is SequenceState.RESERVED


def test_only_held_requests_have_held_blocks():
    worker = Worker()
    worker.add("a", [1, 2])
    for request_id in ("a", "nobody"):
        with pytest.raises(KeyError):
            worker.scheduler.held_blocks(request_id)
        worker.scheduler.release(request_id)
    assert worker.scheduler.state_of("a") is SequenceState.WAITING
