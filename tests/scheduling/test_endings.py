"""When requests end, and which ones never start."""

import pytest

from dynamo_sdk.errors import ConfigError, InvalidRequest
from dynamo_sdk.types import FinishReason, Role

from .fake_model import expected_output, make_request
from .worker import Worker


@pytest.mark.parametrize(
    ("fields", "reason", "num_output"),
    [
        ({"max_tokens": 3}, FinishReason.LENGTH, 3),
        ({"max_tokens": 9, "generated": (4, 4)}, FinishReason.LENGTH, 9),
        ({"max_tokens": 99}, FinishReason.LENGTH, 30),
    ],
)
def test_length(fields, reason, num_output):
    worker = Worker()
    worker.add("a", [1, 2], **fields)
    while True:
        _, (update,) = worker.step()
        if update.finish_reason:
            break
    assert (update.finish_reason, update.num_output_tokens) == (reason, num_output)
    assert worker.scheduler.pool.num_free_blocks == 16


@pytest.mark.parametrize(
    ("fields", "num_output"),
    [
        ({}, 2),
        ({"min_tokens": 2}, 2),
        ({"min_tokens": 3}, 5),
        ({"ignore_eos": True}, 8),
        ({"ignore_eos": True, "stop_token_ids": (7,)}, 2),
        ({"stop_token_ids": (5,)}, 1),
    ],
)
def test_stop(fields, num_output):
    worker = Worker(eos_token_ids=frozenset({7}))
    worker.add("a", [1, 2], max_tokens=8, **fields)
    for count, token in enumerate([5, 7, 1, 2, 7, 1, 1, 1], 1):
        step = worker.scheduler.schedule()
        (update,) = worker.scheduler.complete(step, {"a": token})
        assert update.num_output_tokens == count
        if update.finish_reason:
            break
    assert count == num_output
    assert update.finish_reason is (FinishReason.LENGTH if count == 8 else FinishReason.STOP)


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        ([], {}, "prompt"),
        (range(32), {}, "prompt"),
        (range(30), {"generated": (1, 2)}, "prompt"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"max_tokens": 2, "generated": (1, 2)}, "max_tokens"),
    ],
)
def test_what_can_never_run_is_refused(prompt, fields, param):
    worker = Worker()
    with pytest.raises(InvalidRequest) as refused:
        worker.add("a", prompt, **fields)
    assert refused.value.param == param
    with pytest.raises(InvalidRequest):
        worker.scheduler.reserve(make_request("a", prompt, role=Role.DECODE, **fields))
    assert not worker.scheduler.has_work


def test_the_pool_bounds_the_context():
    worker = Worker(num_blocks=3)
    with pytest.raises(InvalidRequest, match="maximum context length is 6"):
        worker.add("a", range(6))
    request = worker.add("a", range(5), max_tokens=9)
    assert worker.run("a") == expected_output(request, worker.config)[0]


def test_one_id_one_request():
    worker = Worker()
    worker.add("a", [1, 2])
    with pytest.raises(InvalidRequest) as refused:
        worker.add("a", [1, 2])
    assert refused.value.param == "request_id"


@pytest.mark.parametrize(
    "limits",
    [
        {"block_size": 0},
        {"num_blocks": 0},
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 3},
        {"context_length": 1},
    ],
)
def test_limits_that_cannot_work_are_refused(limits):
    with pytest.raises(ConfigError) as refused:
        Worker(**limits)
    assert refused.value.param == next(iter(limits))
