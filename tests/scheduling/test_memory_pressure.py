"""What happens when blocks run out."""

from dynamo_sdk.scheduling import SequenceState
from dynamo_sdk.types import FinishReason, Role

from .fake_model import expected_output, make_request
from .worker import Worker, names


def two_that_collide(**limits):
    """Two requests that fit when they start, and cannot both finish: ``first`` and ``second``."""
    worker = Worker(num_blocks=6, **limits)
    requests = [
        worker.add("first", [1, 2, 3], max_tokens=8),
        worker.add("second", [4, 5, 6], max_tokens=8),
    ]
    return worker, requests


def test_the_latest_is_preempted_and_keeps_its_output():
    worker, requests = two_that_collide()
    outputs, preempted = {"first": [], "second": []}, []
    while worker.scheduler.has_work:
        step, updates = worker.step()
        preempted.extend(step.preempted)
        for update in updates:
            outputs[update.request_id].append(update.token_id)
    assert preempted == ["second"]
    for request in requests:
        assert outputs[request.request_id] == expected_output(request, worker.config)[0]


def test_nobody_is_admitted_in_the_step_that_preempts():
    twin, _ = two_that_collide()
    num_steps = 1
    while not twin.step()[0].preempted:
        num_steps += 1
    worker, _ = two_that_collide()
    for _ in range(num_steps - 1):
        worker.step()
    worker.add("urgent", [6], priority=-1)
    assert names(worker.step()[0]) == ["first"]
    assert names(worker.step()[0]) == ["first", "urgent"]


def test_a_newcomer_leaves_each_running_request_its_next_block():
    worker = Worker(num_blocks=4)
    worker.add("a", [1, 2, 3])
    worker.step()
    worker.add("b", [4, 5, 6])
    assert names(worker.step()[0]) == ["a"]


def starve():
    """``a`` runs and lacks a block that only the reserved request ``r`` could give back."""
    worker = Worker(num_blocks=6, max_num_seqs=3)
    request = make_request("r", range(7), role=Role.DECODE, max_tokens=3)
    worker.fill(request, worker.scheduler.reserve(request))
    worker.add("a", [1, 2], max_tokens=9)
    while worker.step()[0].sequences:
        pass
    return worker, request


def test_a_running_request_waits_for_reserved_blocks():
    worker, _ = starve()
    assert worker.scheduler.state_of("a") is SequenceState.RUNNING
    worker.scheduler.release("r")
    assert names(worker.step()[0]) == ["a"]


def test_a_reservation_that_starts_to_run_ends_the_wait():
    worker, request = starve()
    worker.scheduler.add(request)
    finished = {}
    while worker.scheduler.has_work:
        finished |= {update.request_id: update.finish_reason for update in worker.step()[1]}
    assert finished == {"a": FinishReason.LENGTH, "r": FinishReason.LENGTH}
    assert worker.scheduler.pool.num_free_blocks == 6


def test_nobody_is_served_before_a_request_that_lacks_a_block():
    worker, _ = starve()
    worker.add("later", [3])
    late = make_request("late", [3], role=Role.DECODE)
    worker.scheduler.abort("later")
    assert worker.scheduler.reserve(late) is None
    worker.scheduler.release("r")
    assert worker.scheduler.reserve(late) is None
    worker.step()
    assert worker.scheduler.reserve(late) is not None


def test_who_is_gone_lacks_nothing():
    worker, _ = starve()
    worker.scheduler.abort("a")
    assert worker.scheduler.reserve(make_request("late", [3], role=Role.DECODE)) is not None


def test_a_reservation_does_not_overtake_a_waiting_request():
    worker = Worker(max_num_seqs=2)
    worker.add("a", [1, 2])
    assert worker.scheduler.reserve(make_request("late", [3], role=Role.DECODE)) is None
    assert worker.scheduler.reserve(make_request("urgent", [3], role=Role.DECODE, priority=-1)) is not None


def test_a_reservation_needs_and_keeps_a_slot():
    worker = Worker(max_num_seqs=1)
    request = make_request("r", [3, 4], role=Role.DECODE)
    assert worker.scheduler.reserve(request) is not None
    assert worker.scheduler.reserve(make_request("s", [3, 4], role=Role.DECODE)) is None
    worker.add("a", [1, 2])
    assert worker.step()[0].sequences == ()
    worker.scheduler.add(request)
    assert names(worker.step()[0]) == ["r"]
