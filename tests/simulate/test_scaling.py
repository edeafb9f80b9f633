"""A planner in virtual time: what it is told, and what becomes of its orders."""

from __future__ import annotations

import pytest

from dynamo_sdk.errors import PluginError
from dynamo_sdk.interfaces import Planner, PlannerEffects, PlannerInput
from dynamo_sdk.simulate import Arrival, Workload, simulate

from .fleets import fleet

WORKLOAD = Workload(
    name="w",
    arrivals=tuple(
        Arrival(at_s=number / 10, num_input_tokens=64, num_output_tokens=20) for number in range(100)
    ),
)


class Scripted(Planner):
    """Wants what its script says, a second after the other."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.seen: list[PlannerInput] = []

    def on_tick(self, facts: PlannerInput) -> PlannerEffects:
        self.seen.append(facts)
        wanted = {"Aggregated": self.script.pop(0)} if self.script else {}
        return PlannerEffects(next_tick_s=facts.now_s + 1, scale_to=wanted, reasons=("as written.",))


def test_replicas_come_and_go() -> None:
    planner = Scripted(2, 3, 3, 1)
    spec = fleet(num_workers=2, new_planner=lambda: planner, startup_time_s=1.5)
    outcome = simulate(WORKLOAD, spec)
    assert all(found.error is None for found in outcome.requests)
    times = {worker.worker_id: (worker.since_s, worker.until_s) for worker in outcome.workers}
    assert times["Aggregated.2"][0] == 2.5, "ordered at 1 s"
    assert 3.0 <= times["Aggregated.2"][1] < 4.0, "it ends with its last request"
    assert times["Aggregated.0"] == (0.0, outcome.ended_s)
    assert [found.workers for found in outcome.requests if found.arrival_s > 4.0] == [["Aggregated.0"]] * 59
    assert [(found.at_s, found.num_replicas) for found in outcome.scalings] == [
        (0.0, 2), (1.0, 3), (2.0, 3), (3.0, 1),
    ]  # fmt: skip


def test_those_that_start_go_before_those_that_serve() -> None:
    planner = Scripted(2, 5, 3, 2)
    spec = fleet(num_workers=2, new_planner=lambda: planner, startup_time_s=5.0)
    outcome = simulate(WORKLOAD, spec)
    assert {worker.worker_id for worker in outcome.workers} == {"Aggregated.0", "Aggregated.1"}
    told = [facts.services[0].num_replicas for facts in planner.seen[:6]]
    assert told == [2, 2, 5, 3, 2, 2]


def test_what_a_planner_is_told() -> None:
    planner = Scripted()
    simulate(WORKLOAD, fleet(num_workers=2, new_planner=lambda: planner))
    times = [facts.now_s for facts in planner.seen]
    assert times == [float(number) for number in range(len(times))]
    assert 10 <= len(times) <= 12, "it ticks as long as there are requests"
    (load,) = planner.seen[5].services
    assert (load.service, load.num_replicas, load.num_ready) == ("Aggregated", 2, 2)
    assert load.requests_per_s == pytest.approx(10)
    assert (load.isl_mean_tokens, load.osl_mean_tokens) == (64, 20)
    assert load.ttft_p50_ms == pytest.approx(17.5, rel=0.2)
    assert load.itl_p50_ms == pytest.approx(6, rel=0.2)


def test_a_planner_without_end_is_refused() -> None:
    class Stuck(Planner):
        def on_tick(self, facts: PlannerInput) -> PlannerEffects:
            return PlannerEffects(next_tick_s=facts.now_s)

    with pytest.raises(PluginError, match="next tick"):
        simulate(WORKLOAD, fleet(new_planner=Stuck))
