"""Who goes next: the published share of deficit round robin, and a naive account of everything else."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo_sdk.errors import Overloaded
from dynamo_sdk.flow.admission import AdmissionLimits, AdmissionQueue, Waiting


def fill(queue: AdmissionQueue, **num_of: int) -> None:
    for number in range(max(num_of.values())):
        for tenant, num in num_of.items():
            if number < num:
                queue.put(Waiting(request_id=f"{tenant}-{number}", tenant=tenant, cost=512))


def first(queue: AdmissionQueue, num: int) -> Counter[str]:
    taken = [queue.next() for _ in range(num)]
    return Counter(request.tenant for request in taken if request is not None)


def test_the_published_share() -> None:
    """Quanta of 512 to 128 and 320 requests of 512 tokens each: 256 to 64 of the first 320."""
    queue = AdmissionQueue(AdmissionLimits(quanta={"premium": 512, "regular": 128}))
    fill(queue, premium=320, regular=320)
    assert first(queue, 320) == {"premium": 256, "regular": 64}


def test_equal_quanta_share_equally() -> None:
    queue = AdmissionQueue()
    fill(queue, one=320, two=320)
    shares = first(queue, 320)
    assert abs(shares["one"] - shares["two"]) <= 4


def test_a_tenant_alone_is_not_slowed_by_its_quantum() -> None:
    queue = AdmissionQueue(AdmissionLimits(default_quantum=1))
    queue.put(Waiting(request_id="r", cost=10**15))
    assert queue.next() is not None


def test_a_higher_priority_goes_before_everybody() -> None:
    queue = AdmissionQueue()
    for number, priority in enumerate([1, 0, 1, -5]):
        queue.put(Waiting(request_id=str(number), priority=priority))
    assert [request.request_id for request in iter(queue.next, None)] == ["3", "1", "0", "2"]


def test_limits_are_said_and_kept() -> None:
    queue = AdmissionQueue(AdmissionLimits(max_waiting=3, max_waiting_per_tenant=2))
    fill(queue, one=2)
    with pytest.raises(Overloaded, match="2 requests of this tenant wait"):
        queue.put(Waiting(request_id="x", tenant="one"))
    queue.put(Waiting(request_id="y", tenant="two"))
    with pytest.raises(Overloaded, match="3 requests wait for a worker"):
        queue.put(Waiting(request_id="z", tenant="three"))
    assert queue.remove("one-0")
    assert not queue.remove("one-0")
    queue.put(Waiting(request_id="z", tenant="one"))
    with pytest.raises(ValueError, match="'z' waits already"):
        queue.put(Waiting(request_id="z", tenant="one"))


@given(
    quanta=st.lists(st.integers(1, 1000), min_size=2, max_size=4),
    costs=st.lists(st.integers(1, 3000), min_size=4, max_size=20),
)
def test_backlogged_tenants_get_tokens_as_their_quanta_say(quanta: list[int], costs: list[int]) -> None:
    """Within one quantum and one request, at every moment in which all of them wait."""
    names = [str(number) for number in range(len(quanta))]
    queue = AdmissionQueue(AdmissionLimits(quanta=dict(zip(names, quanta, strict=True))))
    for number in range(40):
        for name in names:
            cost = costs[(number + int(name)) % len(costs)]
            queue.put(Waiting(request_id=f"{name}-{number}", tenant=name, cost=cost))
    served = dict.fromkeys(names, 0)
    while all(queue.num_waiting(name) for name in names):
        request = queue.next()
        assert request is not None
        served[request.tenant] += request.cost
        rounds = [served[name] / quantum for name, quantum in zip(names, quanta, strict=True)]
        slack = 2 + 2 * max(costs) / min(quanta)
        assert max(rounds) - min(rounds) <= slack


class Queueing(RuleBasedStateMachine):
    """Against a list in order of arrival."""

    @initialize()
    def start(self) -> None:
        self.queue = AdmissionQueue(AdmissionLimits(default_quantum=7, max_waiting=12))
        self.waiting: list[Waiting] = []
        self.num = 0

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(0, 2), cost=st.integers(0, 50))
    def put(self, tenant: str, priority: int, cost: int) -> None:
        self.num += 1
        request = Waiting(request_id=str(self.num), tenant=tenant, priority=priority, cost=cost)
        if len(self.waiting) == 12:
            with pytest.raises(Overloaded):
                self.queue.put(request)
            return
        self.queue.put(request)
        self.waiting.append(request)

    @rule()
    def take(self) -> None:
        request = self.queue.next()
        if not self.waiting:
            assert request is None
            return
        assert request is not None
        highest = min(one.priority for one in self.waiting)
        same = [one for one in self.waiting if (one.priority, one.tenant) == (highest, request.tenant)]
        assert request == same[0], "not the first of its tenant in the highest priority"
        self.waiting.remove(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(request.request_id)
        self.waiting.remove(request)

    @invariant()
    def adds_up(self) -> None:
        self.queue.check_integrity()
        assert len(self.queue) == len(self.waiting)


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=100, stateful_step_count=40)
