"""What is computed once and used again."""

import pytest

from dynamo_sdk.types import BlocksStored

from .worker import Worker, names, sizes


def test_a_cached_prefix_is_not_computed_again():
    worker = Worker()
    worker.add("a", range(9), max_tokens=1)
    worker.step()
    worker.add("b", [*range(8), 5, 6], max_tokens=1)
    step, (update,) = worker.step()
    assert (step.sequences[0].start, step.sequences[0].token_ids) == (8, (5, 6))
    assert update.num_cached_tokens == 8


def test_the_last_known_token_is_always_computed():
    worker = Worker()
    worker.add("a", range(8), max_tokens=1)
    worker.step()
    worker.add("b", range(8), max_tokens=1)
    step, _ = worker.step()
    assert step.sequences[0].token_ids == (6, 7)


@pytest.mark.parametrize("difference", [{"cache_salt": "x"}, {"lora": "x"}])
def test_tenants_and_adapters_share_nothing(difference):
    worker = Worker()
    worker.add("a", range(8), max_tokens=1)
    worker.step()
    worker.add("b", range(8), max_tokens=1, **difference)
    step, _ = worker.step()
    assert step.sequences[0].start == 0


def test_siblings_wait_for_the_one_that_computes_their_prompt():
    worker = Worker(max_num_batched_tokens=64)
    for index in range(3):
        worker.add(f"n{index}", range(9))
    worker.add("other", range(20, 25))
    step, _ = worker.step()
    assert sizes(step) == {"n0": 9, "other": 5}
    step, _ = worker.step()
    assert sizes(step) == {"n0": 1, "other": 1, "n1": 1, "n2": 1}


def test_a_sibling_that_waits_keeps_its_claim_to_a_slot():
    worker = Worker(max_num_seqs=2)
    for name, prompt in {"n0": range(9), "n1": range(9), "other": range(20, 25)}.items():
        worker.add(name, prompt)
    assert names(worker.step()[0]) == ["n0"]
    assert names(worker.step()[0]) == ["n0", "n1"]


def test_an_urgent_prompt_goes_ahead_of_a_long_one_and_does_not_wait_for_it():
    worker = Worker(num_blocks=32, max_num_batched_tokens=8)
    worker.add("long", range(24), priority=1, max_tokens=1)
    worker.step()
    worker.add("urgent", range(22), max_tokens=1)
    assert sizes(worker.step()[0]) == {"urgent": 8}
    assert sizes(worker.step()[0]) == {"urgent": 6, "long": 2}
    worker.run("long")


def test_a_short_common_prefix_is_not_worth_a_wait():
    worker = Worker()
    worker.add("a", [1, 1, 2, 3, 4])
    worker.add("b", [1, 1, 5, 6, 7])
    assert sizes(worker.step()[0]) == {"a": 5, "b": 5}


def test_events_follow_the_computation():
    worker = Worker(max_num_batched_tokens=5)
    worker.add("a", range(7), max_tokens=2)
    seen = []
    for _ in range(3):
        worker.step()
        seen.append([event.token_ids for event in worker.scheduler.pool.take_events()])
    assert seen[:2] == [[(0, 1, 2, 3)], [(4, 5)]]
    assert [tokens[0] for (tokens,) in seen[2:]] == [6]
    [chain] = worker.scheduler.pool.snapshot()
    assert isinstance(chain, BlocksStored)
    assert len(chain.block_hashes) == 4


def test_without_prefix_caching_nothing_is_shared_or_told():
    worker = Worker(enable_prefix_caching=False)
    for name in ("a", "b"):
        worker.add(name, range(8), max_tokens=1)
    step, _ = worker.step()
    assert [part.start for part in step.sequences] == [0, 0]
    assert worker.scheduler.pool.take_events() == ()


def test_a_reset_cache_stays_empty_of_what_was_computed_before():
    worker = Worker(max_num_batched_tokens=4)
    worker.add("a", range(7), max_tokens=3)
    worker.scheduler.reset_prefix_cache()
    worker.step()
    [chain] = worker.scheduler.pool.snapshot()  # it had no blocks yet
    assert isinstance(chain, BlocksStored)
    assert len(chain.block_hashes) == 2
    worker.scheduler.reset_prefix_cache()
    worker.run("a")
    assert worker.scheduler.pool.snapshot() == ()


def test_a_block_that_was_half_computed_at_a_reset_is_not_cached():
    worker = Worker(block_size=8, max_num_batched_tokens=4)
    worker.add("a", range(10), max_tokens=1)
    worker.step()
    worker.scheduler.reset_prefix_cache()
    worker.run("a")
    assert worker.scheduler.pool.snapshot() == ()
