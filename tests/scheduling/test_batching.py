"""Which tokens a step computes, and who comes first."""

import pytest

from .worker import Worker, names, sizes


def test_decodes_come_first_and_prefill_fills_the_rest_in_chunks():
    worker = Worker(max_num_batched_tokens=6)
    worker.add("a", [1, 2, 3])
    worker.step()
    worker.add("b", range(10))
    step, _ = worker.step()
    assert sizes(step) == {"a": 1, "b": 5}
    assert (step.num_decode_requests, step.num_decode_kv_tokens) == (1, 4)
    assert (step.num_prefill_requests, step.num_prefill_tokens) == (1, 5)
    assert [part.is_sampling for part in step.sequences] == [True, False]
    step, updates = worker.step()
    assert sizes(step) == {"a": 1, "b": 5}
    assert [update.request_id for update in updates] == ["a", "b"]


def test_first_come_first_served_within_a_priority():
    worker = Worker(max_num_seqs=1)
    worker.add("late", [1], priority=1, max_tokens=1)
    worker.add("first", [2], max_tokens=1)
    worker.add("second", [3], max_tokens=1)
    assert [names(worker.step()[0])[0] for _ in range(3)] == ["first", "second", "late"]


def test_an_empty_step_needs_no_complete():
    worker = Worker()
    step = worker.scheduler.schedule()
    assert step.sequences == ()
    assert worker.scheduler.complete(step, {}) == ()
    assert not worker.scheduler.has_work
    worker.scheduler.schedule()


def test_steps_go_strictly_in_turn():
    worker = Worker()
    worker.add("a", [1, 2])
    step = worker.scheduler.schedule()
    with pytest.raises(RuntimeError, match="not complete"):
        worker.scheduler.schedule()
    worker.scheduler.complete(step, {"a": 1})
    with pytest.raises(RuntimeError, match="not under way"):
        worker.scheduler.complete(step, {"a": 1})


def test_load_counts_what_is_not_computed():
    worker = Worker(max_num_batched_tokens=4)
    worker.add("a", range(6))
    worker.add("b", range(7, 12))
    worker.step()
    load = worker.scheduler.load(3.5)
    assert (load.at_s, load.num_running, load.num_waiting) == (3.5, 1, 1)
    assert load.num_waiting_tokens == (6 - 4 - 1) + 5
    assert (load.num_free_blocks, load.num_blocks) == (13, 16)
