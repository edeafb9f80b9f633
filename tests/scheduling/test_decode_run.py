"""Many steps at once must leave what as many single steps leave, to the last block and event."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_sdk.scheduling import Scheduler, SchedulerConfig
from dynamo_sdk.types import FinishReason, Role

from .fake_model import make_request

BLOCK_SIZE = 2


def next_tokens(sampling, position, count):
    """Of few values, so that outputs fill blocks that others have too."""
    return [(sampling.max_tokens + index) % 2 for index in range(position, position + count)]


class Driver:
    """Steps a scheduler; arrivals meet it at the step of their number."""

    def __init__(self, config, arrivals, aborts, *, has_runs):
        self.scheduler = Scheduler(config)
        self.arrivals, self.aborts, self.has_runs = dict(arrivals), dict(aborts), has_runs
        self.num_steps = self.num_run_steps = 0
        self.history = []  # (step, finished request, its number of tokens) and (step, events)

    def run(self):
        moments = sorted({*self.arrivals, *self.aborts})
        while moments or self.scheduler.has_work:
            while moments and moments[0] <= self.num_steps:
                moment = moments.pop(0)
                for request in self.arrivals.get(moment, ()):
                    self.scheduler.add(request)
                if moment in self.aborts:
                    self.scheduler.abort(self.aborts[moment])
            limit = moments[0] - self.num_steps if moments else 1_000
            if not self.has_runs or not self.many(limit):
                self.one()
        return self

    def many(self, limit):
        plan = self.scheduler.plan_run(next_tokens)
        if plan is None:
            return False
        num_steps = min(plan.num_steps, limit)
        assert num_steps >= 1
        updates = self.scheduler.end_run(num_steps)
        self.num_steps += num_steps
        self.num_run_steps += num_steps
        self.note(updates)
        return True

    def one(self):
        step = self.scheduler.schedule()
        sampled = {
            part.request_id: next_tokens(part.request.sampling, part.num_output_tokens, 1)[0]
            for part in step.sequences
            if part.is_sampling
        }
        updates = self.scheduler.complete(step, sampled)
        self.num_steps += 1
        self.note(updates)

    def note(self, updates):
        for update in updates:
            if update.finish_reason is not None:
                self.history.append((self.num_steps, update))
                if update.finish_reason is FinishReason.HANDOVER:
                    self.scheduler.release(update.request_id)
        if events := self.scheduler.pool.take_events():
            self.history.append((self.num_steps, events))

    def state(self):
        self.scheduler.check_integrity()
        pool = self.scheduler._blocks.pool
        return pool._free, list(pool._evictable), pool.snapshot(), self.num_steps, self.scheduler.load(0.0)


requests = st.tuples(
    st.integers(0, 25),  # the step before which it comes
    st.lists(st.integers(0, 1), min_size=1, max_size=6),
    st.integers(1, 14),
    st.sampled_from([(), (), (), (1,)]),
    st.sampled_from([Role.AGGREGATED, Role.AGGREGATED, Role.PREFILL]),
    st.integers(0, 1),
)


@given(
    st.lists(requests, min_size=1, max_size=8),
    st.dictionaries(st.integers(0, 30), st.integers(0, 7), max_size=3),
    st.builds(
        SchedulerConfig,
        block_size=st.just(BLOCK_SIZE),
        num_blocks=st.integers(11, 30),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(6, 12),
        context_length=st.just(24),
        enable_prefix_caching=st.booleans(),
        enable_growth_reserve=st.booleans(),
    ),
)
@settings(max_examples=400)
def test_runs_leave_what_single_steps_leave(workload, aborts, config):
    arrivals: dict[int, list] = {}
    for number, (at_step, prompt, max_tokens, stops, role, priority) in enumerate(workload):
        request = make_request(
            f"r{number}", prompt, max_tokens=max_tokens, stop_token_ids=stops, role=role, priority=priority
        )
        arrivals.setdefault(at_step, []).append(request)
    names = {at_step: f"r{number}" for at_step, number in aborts.items()}
    single = Driver(config, arrivals, names, has_runs=False).run()
    many = Driver(config, arrivals, names, has_runs=True).run()
    assert many.history == single.history
    assert many.state() == single.state()


def config_of(**limits):
    defaults = {"block_size": 2, "num_blocks": 64, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return SchedulerConfig(**(defaults | limits), context_length=64)


def test_quiet_steps_are_taken_at_once():
    config = config_of(block_size=16, num_blocks=16)
    driver = Driver(config, {0: [make_request("r", [1, 2, 3], max_tokens=40)]}, {}, has_runs=True)
    driver.run()
    # After the prefill: up to the full block, a block later, and the end.
    assert [step for step, _ in driver.history] == [14, 30, 40]
    assert (driver.num_steps, driver.num_run_steps) == (40, 39)


def test_a_request_that_a_token_can_end_is_stepped():
    request = make_request("r", [1, 2, 3], max_tokens=9, stop_token_ids=(5,))
    driver = Driver(config_of(), {0: [request]}, {}, has_runs=True).run()
    assert driver.num_run_steps == 0


def test_those_who_wait_for_blocks_do_not_end_a_run():
    config = config_of(block_size=8, num_blocks=4, max_num_seqs=2)
    driver = Driver(
        config,
        {0: [make_request("r", [1] * 8, max_tokens=20), make_request("s", [0] * 16, max_tokens=4)]},
        {},
        has_runs=True,
    )
    driver.run()
    assert driver.num_run_steps > 10


def test_a_run_has_its_turn():
    scheduler = Scheduler(config_of())
    scheduler.add(make_request("r", [1, 2, 3], max_tokens=9))
    assert scheduler.plan_run(next_tokens) is None  # its prompt comes first
    step = scheduler.schedule()
    with pytest.raises(RuntimeError):
        scheduler.plan_run(next_tokens)
    scheduler.complete(step, {"r": 1})
    with pytest.raises(RuntimeError):
        scheduler.end_run(1)
    assert scheduler.plan_run(next_tokens).num_decode_requests == 1
