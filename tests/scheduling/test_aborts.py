"""Requests that end early, and steps that fail."""

import pytest

from dynamo_sdk.types import Role

from .fake_model import expected_output, make_request
from .worker import Worker


def test_memory_of_a_step_under_way_is_given_to_nobody():
    worker = Worker(num_blocks=4)
    worker.add("a", range(6))
    step = worker.scheduler.schedule()
    assert worker.scheduler.abort("a")
    assert not worker.scheduler.abort("a")
    assert worker.scheduler.pool.num_free_blocks == 1
    request = make_request("r", [5, 5, 5], role=Role.DECODE)
    assert worker.scheduler.reserve(request) is None
    assert worker.scheduler.complete(step, {}) == ()
    assert worker.scheduler.pool.num_free_blocks == 4
    assert worker.scheduler.reserve(request) is not None


def test_an_id_is_free_again_at_once():
    worker = Worker()
    worker.add("a", range(6))
    step = worker.scheduler.schedule()
    worker.scheduler.abort("a")
    request = worker.add("a", range(5))
    assert worker.scheduler.complete(step, worker.model.forward(step)) == ()
    assert worker.run("a") == expected_output(request, worker.config)[0]


def test_a_token_that_is_missing_is_noticed():
    worker = Worker()
    worker.add("a", range(6))
    step = worker.scheduler.schedule()
    with pytest.raises(KeyError):
        worker.scheduler.complete(step, {})
    assert [update.token_id for update in worker.scheduler.complete(step, {"a": 3})] == [3]


def test_after_a_failed_forward_pass_everything_can_be_given_up():
    worker = Worker()
    for name in ("a", "b"):
        worker.add(name, [1, 2])
    step = worker.scheduler.schedule()
    assert len(step.sequences) == 2
    for name in ("a", "b"):
        worker.scheduler.abort(name)
    assert worker.scheduler.complete(step, {}) == ()
    assert worker.scheduler.pool.num_free_blocks == 16
    assert (worker.scheduler.num_running, worker.scheduler.num_waiting) == (0, 0)
