"""The lines of ``Admission`` under any order of coming, going, leaving and news; without a loop."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import cast

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo_sdk.errors import Overloaded
from dynamo_sdk.flow import AdmissionLimits, Route
from dynamo_sdk.interfaces import Candidate
from dynamo_sdk.services.admission import Admission
from dynamo_sdk.services.openai.backend import RoutingHints
from dynamo_sdk.services.pools import Pools
from dynamo_sdk.types import GenerateRequest, Role, SamplingParams, WorkerId, pack_tokens

REQUEST = GenerateRequest(
    request_id="r", model="m", prompt=pack_tokens([1]), sampling=SamplingParams(max_tokens=1)
)
MODELS = ("m", "n")
LIMIT = 10


class AnyTraffic(RuleBasedStateMachine):
    """Two pools. Whoever goes is computed on the emptiest worker; some bring others to leave, or to come."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet: dict[str, list[Candidate]] = {model: [] for model in MODELS}
        pools = SimpleNamespace(pool=lambda model, _role: SimpleNamespace(candidates=self.fleet[model]))
        self.admission = Admission(cast(Pools, pools), LIMIT, AdmissionLimits(max_waiting=6))
        self.waiting: dict[str, str] = {}  # request -> model
        self.gone: list[str] = []
        self.num_asked = 0
        self.num_workers = 0

    @rule(model=st.sampled_from(MODELS))
    def add_worker(self, model: str) -> None:
        self.num_workers += 1
        self.fleet[model].append(Candidate(worker_id=WorkerId(f"w{self.num_workers}")))
        self.admission.let_in()

    @precondition(lambda self: any(self.fleet.values()))
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([model for model, workers in self.fleet.items() if workers]))
        self.fleet[model].pop()
        self.admission.let_in()

    @rule(
        model=st.sampled_from(MODELS),
        cost=st.integers(1, 2 * LIMIT),
        priority=st.integers(0, 1),
        tenant=st.sampled_from(["", "a", "b"]),
        then=st.sampled_from(["nothing", "leave", "leave and ask", "ask", "leave all and ask", "free"]),
    )
    def ask(self, model: str, cost: int, priority: int, tenant: str, then: str) -> None:
        self._ask(model, cost, priority, tenant, then)

    def _ask(self, model: str, cost: int, priority: int, tenant: str, then: str) -> None:
        self.num_asked += 1
        name = f"r{self.num_asked}"
        request = msgspec.structs.replace(REQUEST, request_id=name, model=model, priority=priority)
        ask = Route(pool=Role.AGGREGATED, num_tokens=cost)
        go = partial(self._go, name, model, cost, then)
        self.waiting[name] = model  # as it may be let in before the call returns
        try:
            if not self.admission.must_wait(model, ask, request, RoutingHints(tenant=tenant), go):
                go()
        except Overloaded:
            del self.waiting[name]

    def _go(self, name: str, model: str, cost: int, then: str) -> None:
        assert name not in self.gone, "it went twice"
        assert name in self.waiting, "it had left"
        del self.waiting[name]
        self.gone.append(name)
        if workers := self.fleet[model]:
            min(workers, key=lambda worker: worker.num_prefill_tokens).num_prefill_tokens += cost
        others = [other for other, where in self.waiting.items() if where == model]
        if then == "free":
            for worker in (worker for workers in self.fleet.values() for worker in workers):
                worker.num_prefill_tokens = 0
        if then.startswith("leave"):
            for other in others if "all" in then else others[:1]:
                self._leave(other)
        if then.endswith("ask"):
            self._ask(model, 1, 0, "", "nothing")
        self.admission.let_in()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self._leave(data.draw(st.sampled_from(sorted(self.waiting))))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def leave_again(self, data: st.DataObject) -> None:
        self.admission.leave(data.draw(st.sampled_from(self.gone)))

    def _leave(self, name: str) -> None:
        del self.waiting[name]
        self.admission.leave(name)

    @rule(model=st.sampled_from(MODELS), is_told=st.booleans())
    def compute(self, model: str, is_told: bool) -> None:
        for worker in self.fleet[model]:
            worker.num_prefill_tokens = 0
        if is_told or self.waiting:
            self.admission.let_in()

    @invariant()
    def nobody_is_forgotten(self) -> None:
        assert self.admission.num_waiting == len(self.waiting)
        for model in set(self.waiting.values()):
            workers = self.fleet[model]
            assert workers, "those without a worker go, and fail"
            assert all(worker.num_prefill_tokens > LIMIT for worker in workers), "there is room"


TestAnyTraffic = AnyTraffic.TestCase
TestAnyTraffic.settings = settings(max_examples=200, stateful_step_count=40)
