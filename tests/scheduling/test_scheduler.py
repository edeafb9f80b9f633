"""What the scheduler does, one behaviour a test."""

import pytest

from dynamo_sdk.errors import ConfigError, InvalidRequest
from dynamo_sdk.scheduling import Scheduler, SchedulerConfig, SequenceState
from dynamo_sdk.types import BlocksStored, FinishReason, Role

from .fake_model import FakeModel, chain, expected_output, make_request


class Worker:
    """A scheduler and a fake model, stepped by hand."""

    def __init__(self, **limits):
        defaults = {
            "block_size": 2,
            "num_blocks": 16,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 16,
            "context_length": 32,
        }
        self.config = SchedulerConfig(**(defaults | limits))
        self.scheduler = Scheduler(self.config)
        self.model = FakeModel(self.config)

    def add(self, *args, **fields):
        request = make_request(*args, **fields)
        self.scheduler.add(request)
        return request

    def step(self):
        """One whole step: (the step, its updates)."""
        step = self.scheduler.schedule()
        updates = self.scheduler.complete(step, self.model.forward(step))
        self.scheduler.check_integrity()
        return step, updates

    def run(self, request_id):
        """Step until the request is done; its tokens."""
        tokens = []
        while True:
            step, updates = self.step()
            assert step.sequences
            for update in updates:
                if update.request_id == request_id:
                    tokens.append(update.token_id)
                    if update.finish_reason is not None:
                        return tokens

    def fill(self, request, reservation):
        """What a transfer does: write all KV that the reservation is for."""
        known = request.token_ids()
        for position, number in enumerate(chain(request, known[:-1] if request.generated else known)):
            if position >= reservation.num_cached_blocks * self.config.block_size:
                self.model.write(reservation.block_ids, position, number)


def names(step):
    return [part.request_id for part in step.sequences]


def sizes(step):
    return {part.request_id: len(part.token_ids) for part in step.sequences}


# -- batching


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


# -- endings


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
    assert worker.scheduler.num_free_blocks == 16


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


# -- prefix cache


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
        seen.append([event.token_ids for event in worker.scheduler.take_kv_events()])
    assert seen[:2] == [[(0, 1, 2, 3)], [(4, 5)]]
    assert [tokens[0] for (tokens,) in seen[2:]] == [6]
    assert all(isinstance(event, BlocksStored) for event in worker.scheduler.kv_snapshot())
    assert len(worker.scheduler.kv_snapshot()) == 4


def test_without_prefix_caching_nothing_is_shared_or_told():
    worker = Worker(enable_prefix_caching=False)
    for name in ("a", "b"):
        worker.add(name, range(8), max_tokens=1)
    step, _ = worker.step()
    assert [part.start for part in step.sequences] == [0, 0]
    assert worker.scheduler.take_kv_events() == ()


def test_a_reset_cache_stays_empty_of_what_was_computed_before():
    worker = Worker(max_num_batched_tokens=4)
    worker.add("a", range(7), max_tokens=3)
    worker.scheduler.reset_prefix_cache()
    worker.step()
    assert len(worker.scheduler.kv_snapshot()) == 2  # it had no blocks yet
    worker.scheduler.reset_prefix_cache()
    worker.run("a")
    assert worker.scheduler.kv_snapshot() == ()


def test_a_block_that_was_half_computed_at_a_reset_is_not_cached():
    worker = Worker(block_size=8, max_num_batched_tokens=4)
    worker.add("a", range(10), max_tokens=1)
    worker.step()
    worker.scheduler.reset_prefix_cache()
    worker.run("a")
    assert worker.scheduler.kv_snapshot() == ()


# -- memory runs out


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
    assert worker.scheduler.num_free_blocks == 6


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


# -- hand-over


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
    assert prefill.scheduler.num_free_blocks == 16

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


# -- aborts


def test_memory_of_a_step_under_way_is_given_to_nobody():
    worker = Worker(num_blocks=4)
    worker.add("a", range(6))
    step = worker.scheduler.schedule()
    assert worker.scheduler.abort("a")
    assert not worker.scheduler.abort("a")
    assert worker.scheduler.num_free_blocks == 1
    request = make_request("r", [5, 5, 5], role=Role.DECODE)
    assert worker.scheduler.reserve(request) is None
    assert worker.scheduler.complete(step, {}) == ()
    assert worker.scheduler.num_free_blocks == 4
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
    assert worker.scheduler.num_free_blocks == 16
    assert (worker.scheduler.num_running, worker.scheduler.num_waiting) == (0, 0)
