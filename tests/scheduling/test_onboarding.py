"""Requests whose KV may lie in lower tiers: who waits for it, who does not, and what is computed then."""

import pytest

from dynamo_sdk.scheduling import SequenceState, findable_keys

from .fake_model import chain, expected_output, make_request
from .worker import Worker, names, sizes


def add(worker, *args, **fields):
    request = make_request(*args, **fields)
    worker.scheduler.add(request, is_onboarding=True)
    return request


def load(worker, onboarding, num_blocks):
    """Fill the first ``num_blocks`` that are missing, as a tier would."""
    numbers = chain(onboarding.request, onboarding.request.token_ids())
    size, first = worker.config.block_size, onboarding.num_cached_blocks
    for position in range(first * size, (first + num_blocks) * size):
        worker.model.write(onboarding.block_ids, position, numbers[position])
    worker.scheduler.end_onboarding(onboarding.request_id, num_blocks)
    worker.scheduler.check_integrity()


PROMPT = [1, 2, 3, 4, 5, 6, 1]  # three full blocks of two, and a token


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
def test_what_is_loaded_is_not_computed(num_blocks):
    worker = Worker()
    request = add(worker, "a", PROMPT)
    step, _ = worker.step()
    assert not step.sequences
    (onboarding,) = step.onboarding
    assert (onboarding.num_cached_blocks, len(onboarding.keys)) == (0, 3)
    load(worker, onboarding, num_blocks)
    step, updates = worker.step()
    assert sizes(step) == {"a": 7 - 2 * num_blocks}
    assert updates[0].num_cached_tokens == 2 * num_blocks
    assert [updates[0].token_id, *worker.run("a")] == expected_output(request, worker.config)[0]


def test_others_go_on_while_one_loads():
    worker = Worker()
    add(worker, "a", PROMPT)
    worker.add("b", [3, 3, 3])
    step, _ = worker.step()
    assert names(step) == ["b"]
    assert [onboarding.request_id for onboarding in step.onboarding] == ["a"]
    step, _ = worker.step()
    assert names(step) == ["b"]
    assert not step.onboarding


def test_who_loads_counts_as_waiting_and_has_a_slot():
    worker = Worker(max_num_seqs=1)
    add(worker, "a", PROMPT)
    worker.add("b", [3, 3, 3])
    worker.step()
    load_ = worker.scheduler.load(0.0)
    assert (load_.num_running, load_.num_waiting, load_.num_waiting_tokens) == (0, 2, 10)
    assert worker.scheduler.has_work


def test_nobody_waits_for_what_the_device_has():
    worker = Worker()
    worker.add("a", PROMPT, max_tokens=1)
    worker.run("a")
    add(worker, "b", PROMPT)
    step, _ = worker.step()
    assert sizes(step) == {"b": 1}
    assert not step.onboarding


def test_only_what_the_device_lacks_is_to_be_loaded():
    worker = Worker()
    worker.add("a", PROMPT[:4], max_tokens=1)
    worker.run("a")
    add(worker, "b", PROMPT)
    (onboarding,) = worker.step()[0].onboarding
    assert onboarding.num_cached_blocks == 2
    load(worker, onboarding, 1)
    assert sizes(worker.step()[0]) == {"b": 1}


def test_one_of_two_siblings_loads():
    worker = Worker()
    add(worker, "a", PROMPT)
    add(worker, "b", PROMPT)
    (onboarding,) = worker.step()[0].onboarding
    assert onboarding.request_id == "a"
    load(worker, onboarding, 3)
    step, _ = worker.step()
    assert sizes(step) == {"a": 1, "b": 1}
    assert not step.onboarding


def test_what_was_loaded_is_found_by_others_and_told():
    worker = Worker()
    add(worker, "a", PROMPT)
    (onboarding,) = worker.step()[0].onboarding
    worker.scheduler.pool.take_events()
    load(worker, onboarding, 2)
    (event,) = worker.scheduler.pool.take_events()
    assert event.token_ids == tuple(PROMPT[:4])
    assert worker.scheduler.pool.count_cached(onboarding.keys) == 2


def test_an_aborted_load_leaves_nothing():
    worker = Worker()
    add(worker, "a", PROMPT)
    (onboarding,) = worker.step()[0].onboarding
    assert worker.scheduler.abort("a")
    worker.scheduler.end_onboarding("a", 3)
    assert worker.scheduler.pool.num_free_blocks == worker.config.num_blocks
    assert worker.scheduler.pool.count_cached(onboarding.keys) == 0


def test_who_was_preempted_computes_and_does_not_load_again():
    """In the torch engine as in simulations."""
    worker, preempted = Worker(num_blocks=6), []
    requests = [add(worker, "first", [1, 2, 3], max_tokens=8), add(worker, "second", [4, 5, 6], max_tokens=8)]
    for onboarding in worker.step()[0].onboarding:
        load(worker, onboarding, 1)
    outputs = {"first": [], "second": []}
    while worker.scheduler.has_work:
        step, updates = worker.step()
        assert not step.onboarding
        preempted.extend(step.preempted)
        for update in updates:
            outputs[update.request_id].append(update.token_id)
    assert preempted == ["second"]
    for request in requests:
        assert outputs[request.request_id] == expected_output(request, worker.config)[0]


def test_more_than_is_missing_cannot_have_been_loaded():
    worker = Worker()
    add(worker, "a", PROMPT)
    worker.step()
    with pytest.raises(ValueError, match="misses no 4 blocks"):
        worker.scheduler.end_onboarding("a", 4)
    assert worker.scheduler.state_of("a") is SequenceState.LOADING


def test_what_is_loaded_after_the_cache_was_forgotten_is_computed_again():
    worker = Worker()
    add(worker, "a", PROMPT)
    (onboarding,) = worker.step()[0].onboarding
    worker.scheduler.reset_prefix_cache()
    load(worker, onboarding, 3)
    assert sizes(worker.step()[0]) == {"a": 7}


def test_the_last_token_is_never_loaded():
    worker = Worker()
    assert len(findable_keys(make_request("a", [1, 2, 3, 4]), worker.config)) == 1
    assert len(findable_keys(make_request("a", [1, 2], generated=[3, 4, 5]), worker.config)) == 2


def test_a_copy_is_good_if_its_block_was_not_given_away():
    worker = Worker(num_blocks=4)
    scheduler, pool = worker.scheduler, worker.scheduler.pool
    pool.record_new_blocks()
    worker.add("a", [1, 2, 3], max_tokens=1)
    worker.run("a")
    (block,) = pool.take_new_blocks()
    assert (block.tokens, block.parent) == (make_request("a", [1, 2]).prompt, None)
    place = pool.place_of(block.key)
    assert pool.is_unchanged(place)
    worker.add("b", [4, 4, 4, 4, 4, 4, 4], max_tokens=1)
    assert pool.is_unchanged(place)
    worker.run("b")
    assert not pool.is_unchanged(place)
    assert pool.place_of(block.key) is None
    worker.add("a", [1, 2, 3], max_tokens=1, priority=2)
    worker.run("a")
    assert not pool.is_unchanged(place)
    assert [block.priority for block in pool.take_new_blocks()] == [0, 0, 0, -2]
    assert scheduler.pool.num_free_blocks == 4


def test_who_would_rather_compute_is_in_the_very_step():
    worker = Worker()
    add(worker, "a", PROMPT)
    asked = []
    step = worker.scheduler.schedule(lambda onboarding: asked.append(onboarding) or False)
    assert sizes(step) == {"a": 7}
    assert [(found.request_id, found.num_cached_blocks, len(found.keys)) for found in asked] == [("a", 0, 3)]
    assert not step.onboarding


# -- loads that begin between two schedules


def test_a_load_begins_while_a_step_is_under_way():
    worker = Worker()
    worker.add("b", [3, 3, 3])
    step = worker.scheduler.schedule()
    request = add(worker, "a", PROMPT)
    (onboarding,) = worker.scheduler.start_loads()
    assert worker.scheduler.state_of("a") is SequenceState.LOADING
    assert worker.scheduler.start_loads() == ()
    load(worker, onboarding, 3)
    worker.scheduler.complete(step, worker.model.forward(step))
    step, updates = worker.step()
    assert sizes(step) == {"b": 1, "a": 1}
    assert not step.onboarding
    output = [update.token_id for update in updates if update.request_id == "a"]
    assert [*output, *worker.run("a")] == expected_output(request, worker.config)[0]


def test_a_load_overtakes_nobody():
    worker = Worker()
    worker.add("b", [3, 3, 3])
    add(worker, "a", PROMPT)
    assert worker.scheduler.start_loads() == ()
    step, _ = worker.step()
    assert [onboarding.request_id for onboarding in step.onboarding] == ["a"]


def test_a_load_waits_for_blocks_and_a_slot():
    worker = Worker(num_blocks=4, max_num_seqs=1)
    worker.add("b", [3, 3, 3], max_tokens=2)
    worker.step()
    add(worker, "a", PROMPT)
    assert worker.scheduler.start_loads() == (), "the slot is taken"
    worker.run("b")
    assert len(worker.scheduler.start_loads()) == 1

    worker = Worker(num_blocks=4)
    worker.add("b", [3, 3, 3])
    worker.step()
    add(worker, "a", PROMPT)
    assert worker.scheduler.start_loads() == (), "the blocks are taken"


def test_a_sibling_of_one_that_computes_does_not_load():
    worker = Worker()
    worker.add("a", PROMPT)
    step = worker.scheduler.schedule()
    add(worker, "b", PROMPT)
    assert worker.scheduler.start_loads() == ()
    worker.scheduler.complete(step, worker.model.forward(step))
    assert worker.scheduler.start_loads() == (), "all is on the device now"
    assert sizes(worker.step()[0]) == {"a": 1, "b": 1}


def test_who_would_rather_compute_is_asked_again_and_nothing_moved():
    worker = Worker(num_blocks=8)
    worker.add("old", [6, 6, 6, 6, 6], max_tokens=1)
    worker.run("old")
    add(worker, "a", PROMPT)
    before = worker.scheduler.pool.snapshot(), worker.scheduler.pool.num_free_blocks
    asked = []
    assert worker.scheduler.start_loads(asked.append) == ()
    assert (worker.scheduler.pool.snapshot(), worker.scheduler.pool.num_free_blocks) == before
    assert worker.scheduler.state_of("a") is SequenceState.WAITING
    assert (asked[0].num_cached_blocks, len(asked[0].keys), asked[0].num_tokens) == (0, 3, 7)
    step = worker.scheduler.schedule(lambda onboarding: asked.append(onboarding) or True)
    assert [found.request_id for found in (*asked, *step.onboarding)] == ["a", "a", "a"]
